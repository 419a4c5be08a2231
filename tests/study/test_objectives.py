"""Several objectives: what each is, who dominates whom, how such a study races, ends and is shown."""

import json

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.document import Place
from evomerge.errors import DocumentError, EvomergeError, ScoringError
from evomerge.report.write import write_report
from evomerge.scoring.scores import Row, Scores
from evomerge.scoring.suite import GuardConfig, Suite
from evomerge.study.estimate import estimate
from evomerge.study.objectives import check_objectives, is_less_better, objective_values, refuse_textless
from evomerge.study.pareto import dominates, front, hypervolume
from evomerge.study.race import Arrival, Race
from evomerge.study.search import search
from tests.laboratory import change
from tests.studies import certificate, ended, in_pieces, parameters

SUITE = Suite(tasks={"sum": 3.0, "sort": 1.0}, aggregate="mean")
GUARD = GuardConfig(tasks={"past": 0.1}, kl=0.1)


def rows(task, values, responses=None):
    return [Row(task, i, str(i), v, response=responses[i] if responses else None) for i, v in enumerate(values)]


def scores(total, ordered, past=(1.0, 1.0), texts=None):
    return Scores.of([*rows("sum", total, texts), *rows("sort", ordered), *rows("past", past)])


def valued(names, candidate, base, **distances):
    per_task = [{task: each.values(task) for task in SUITE.tasks} for each in (candidate, base)]
    found = estimate(*per_task, kind="mean", weights=SUITE.tasks)
    return objective_values(names, found, candidate, base, distances, SUITE)


def test_weights_of_the_tasks_and_single_tasks_are_objectives():
    candidate, base = scores([1.0, 0.0], [1.0, 1.0], past=[1.0, 0.0]), scores([0.0, 0.0], [0.0, 0.0])

    found = valued(["target", "sum", "sort", "past", "kl"], candidate, base, kl=0.02)

    assert found == {"target": 3 / 4 * 0.5 + 1 / 4, "sum": 0.5, "sort": 1.0, "past": 0.5, "kl": 0.02}


def test_a_metric_of_which_less_is_better_is_negated_in_its_rows_and_more_is_better_still():
    better, worse = (valued(["sum"], scores([-value] * 2, [0.0] * 2), scores([-3.0] * 2, [0.0] * 2)) for value in (1.0, 2.0))

    assert better["sum"] > worse["sum"]
    assert not is_less_better("sum", SUITE, GUARD)


def test_the_length_of_answers_is_estimated_for_all_documents_from_some():
    base = scores([0.0] * 4, [0.0] * 4, texts=["a", "bb", "ccc", "dddddd"])  # 3 on average
    candidate = Scores.of([*rows("sum", [0.0] * 2, ["aaa", "bbbb"]), *rows("sort", [0.0] * 2)])

    assert valued(["length"], candidate, base) == {"length": 3.0 + 2.0}
    assert is_less_better("length", SUITE, GUARD)


def test_length_without_answers_in_text_is_refused():
    with pytest.raises(ScoringError, match="no task of the suite gives any"):
        refuse_textless(["target", "length"], SUITE, scores([0.0], [0.0]))


@pytest.mark.parametrize(
    ("names", "message"), [(["target", "lenght"], "did you mean 'length'"), ([], "at least one"), (["sum"] * 2, "once")]
)
def test_objectives_that_are_none_are_refused(names, message):
    with pytest.raises(DocumentError, match=message):
        check_objectives(names, SUITE, GUARD, Place("x"))


points = st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=14)


@given(points)
@settings(max_examples=60, deadline=None)
def test_the_front_dominates_all_others_and_none_of_itself(found):
    kept = [found[i] for i in front(found)]

    assert not any(dominates(a, b) for a in kept for b in kept)
    assert all(point in kept or any(dominates(k, point) for k in kept) for point in found)
    assert len(set(kept)) == len(kept)


@given(points)
@settings(max_examples=60, deadline=None)
def test_the_hypervolume_is_the_number_of_unit_cubes_below_a_point(found):
    cells = {(x, y, z) for a, b, c in found for x in range(a) for y in range(b) for z in range(c)}

    assert hypervolume(found, (0, 0, 0)) == len(cells)


def test_the_hypervolume_is_optunas():
    from optuna._hypervolume import compute_hypervolume

    for dims in (2, 3, 4):
        drawn = np.random.default_rng(dims).random((25, dims))
        assert hypervolume(drawn.tolist(), [0.0] * dims) == pytest.approx(compute_hypervolume(-drawn, np.zeros(dims)))


def test_in_a_race_of_several_objectives_those_go_on_whom_fewest_dominate():
    race = Race(rungs=2, eta=2)
    arrived = [(0.9, 0.1), (0.1, 0.9), (0.5, 0.5), (0.05, 0.05), (0.2, 0.8), (0.4, 0.45), (1.0, 1.0)]

    went_on = [race.arrive(Arrival(i, 0, v[0], values=v, violated=i == 6)).goes_on for i, v in enumerate(arrived)]

    assert went_on == [True, True, True, False, True, False, False]


OBJECTIVES = {"sampler": "auto", "objectives": ["near", "close"], "trials": 24}


def test_a_study_of_two_objectives_ends_with_a_shelf_and_one_certificate(laboratory):
    space = change(laboratory, search=OBJECTIVES)
    ending = search(space, laboratory / "study", workers=1)
    write_report(laboratory / "study")

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(laboratory / "study/journal.log")))
    study = optuna.load_study(study_name=None, storage=storage)
    notes = [json.loads(p.read_text()) for p in sorted((laboratory / "study/trials").glob("*/verdict.json"))]
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE] * 2
    assert [trial.values for trial in study.trials] == [list(note["objectives"].values()) for note in notes]
    assert ending == certificate(laboratory / "study")["ending"]
    assert "winner" in certificate(laboratory / "study")
    text = (laboratory / "study/report.md").read_text()
    assert "## The shelf" in text
    assert "hypervolume" in text
    assert (laboratory / "study/report.html").read_text().count("<svg") >= 4


def test_an_interrupted_study_of_two_objectives_goes_on_as_if_it_had_not_been(laboratory):
    space = change(laboratory, search={**OBJECTIVES, "sampler": "nsga2", "sampler_options": {"population_size": 6}})
    search(space, laboratory / "whole", workers=1)
    in_pieces(space, laboratory / "study", 2, 11)

    assert parameters(laboratory / "study") == parameters(laboratory / "whole")
    assert ended(laboratory / "study") == ended(laboratory / "whole")


def test_parameters_are_counted_and_less_is_better(laboratory):
    space = change(laboratory, search={**OBJECTIVES, "objectives": ["target", "parameters"], "trials": 3})
    search(space, laboratory / "study", workers=1)

    notes = [json.loads(p.read_text()) for p in (laboratory / "study/trials").glob("*/verdict.json")]
    assert [note["objectives"]["parameters"] for note in notes] == [3 * 2 * 40] * 3


def test_cma_es_refuses_several_objectives_before_anything_is_written(laboratory):
    with pytest.raises(EvomergeError, match="cmaes takes one objective"):
        search(change(laboratory, search={"objectives": ["near", "close"]}), laboratory / "study", workers=1)

    assert not (laboratory / "study").exists()
