"""What is on disk is whole, belongs to one study and one process, and survives a torn end."""

import json
import multiprocessing
import os

import optuna
import pytest

from evomerge.document import Place
from evomerge.errors import StudyError
from evomerge.recipe import Recipe
from evomerge.scoring.scores import Row, Scores
from evomerge.study.journal import heal_torn_line
from evomerge.study.record import Record

IDENTITY = {"space": "a", "suite": "b"}
MAXIMIZE = [optuna.study.StudyDirection.MAXIMIZE]
RECIPE = Recipe.from_data(
    {"base": "b", "sources": {"s": "m"}, "rules": [{"match": "*", "method": "linear", "weight": 1.0}]}, Place("x.yaml")
)


def trial(value):
    return optuna.trial.create_trial(
        params={"x": value},
        distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
        value=value,
        system_attrs={"sampler": value},
    )


def opened(tmp_path, resume=True, identity=IDENTITY):
    return Record.open(tmp_path / "study", identity, resume=resume)


def test_trials_come_back_with_params_values_and_system_attributes(tmp_path):
    record = opened(tmp_path)
    journal = record.journal(MAXIMIZE)
    for value in (0.1, 0.30000000000000004):
        journal.append(trial(value))
    record.close()

    trials = opened(tmp_path).journal(MAXIMIZE).trials()

    assert [(t.params["x"], t.value, t.system_attrs["sampler"]) for t in trials] == [(0.1,) * 3, (0.30000000000000004,) * 3]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_cut_off_and_the_next_trial_is_not_lost(tmp_path, cut):
    record = opened(tmp_path)
    journal = record.journal(MAXIMIZE)
    journal.append(trial(0.1))
    whole = (tmp_path / "study/journal.log").read_bytes()
    journal.append(trial(0.2))
    torn = (tmp_path / "study/journal.log").read_bytes()
    (tmp_path / "study/journal.log").write_bytes(torn[: max(len(whole) + 1, len(torn) - cut)])
    record.close()

    again = opened(tmp_path).journal(MAXIMIZE)
    before = [t.value for t in again.trials() if t.state.is_finished()]
    again.append(trial(0.3))

    assert before[0] == 0.1
    assert [t.value for t in again.trials()][-1] == 0.3


def test_a_whole_journal_is_left_as_it_is(tmp_path):
    path = tmp_path / "journal.log"
    path.write_bytes(b'{"a": 1}\n{"b": 2}\n')

    heal_torn_line(path)

    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'


def test_a_lock_file_left_by_a_killed_process_does_not_hold_the_next_one_up(tmp_path):
    record = opened(tmp_path)
    record.journal(MAXIMIZE).append(trial(0.1))
    (tmp_path / "study/journal.log.lock").touch()
    record.close()

    assert len(opened(tmp_path).journal(MAXIMIZE).trials()) == 1


def test_an_existing_study_is_not_touched_without_resume(tmp_path):
    opened(tmp_path).close()

    with pytest.raises(StudyError, match=r"holds a study already; add --resume"):
        opened(tmp_path, resume=False)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study/notes.txt").write_text("mine")

    with pytest.raises(StudyError, match="is not empty and holds no study"):
        opened(tmp_path)


@pytest.mark.parametrize("resume", [True, False])
def test_a_new_study_is_begun_with_and_without_resume(tmp_path, resume):
    assert opened(tmp_path, resume=resume).read_json("study.json") == IDENTITY


def test_another_study_in_the_folder_is_named_by_what_differs(tmp_path):
    opened(tmp_path).close()

    with pytest.raises(StudyError, match="begun with another suite, source math; only trials, budget and workers may change"):
        opened(tmp_path, identity={"space": "a", "suite": "c", "source math": "d"})


def _hold(folder, ready, done):
    record = Record.open(folder, IDENTITY, resume=True)
    ready.set()
    done.wait(30)
    record.close()


def test_a_second_process_on_the_same_study_is_refused_by_name(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "study", ready, done))
    holder.start()
    assert ready.wait(60)

    with pytest.raises(StudyError, match=f"process {holder.pid} is working on this study"):
        opened(tmp_path)

    holder.kill()  # as a power cut would: nobody lets go of the lock
    holder.join()
    opened(tmp_path).close()


def test_scores_and_recipe_of_a_trial_are_written_as_one(tmp_path):
    record = opened(tmp_path)
    scores = Scores((Row("task", 0, "h", 1.0),))
    (record.directory / "trials/0000-x").mkdir(parents=True)  # left by a run that was killed
    (record.directory / "trials/0000-x/recipe.yaml").write_text("torn")

    record.write_scored("trials/0000-x", RECIPE, scores, {"state": "survived"})

    assert record.read_scores("trials/0000-x") == scores
    assert Recipe.read(record.directory / "trials/0000-x/recipe.yaml").key() == RECIPE.key()
    assert json.loads((record.directory / "trials/0000-x/verdict.json").read_text()) == {"state": "survived"}
    assert sorted(os.listdir(record.directory / "trials")) == ["0000-x"]
