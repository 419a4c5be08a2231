"""A whole study: what it ends with, what it leaves behind, and that it goes on where it stood."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from evomerge.errors import EvomergeError
from evomerge.recipe import Recipe, Source
from evomerge.report.write import write_report
from evomerge.scoring.scores import Row, Scores
from evomerge.study import reserve
from evomerge.study.clock import Clock
from evomerge.study.record import Record, held
from evomerge.study.reserve import seconds_per_document, seconds_per_healing
from evomerge.study.samplers import SAMPLERS
from evomerge.study.search import search
from evomerge.study.trial import Outcome
from evomerge.study.watch import Nobody
from tests.laboratory import change
from tests.studies import Interrupt, certificate, ended, in_pieces, parameters


def test_a_study_ends_with_a_certified_model_and_plain_files(laboratory):
    study = laboratory / "study"

    assert search(laboratory / "space.yaml", study, workers=1) == 0

    found = certificate(study)
    assert found["verdict"] == "better and certified"
    assert set(found["comparisons"]) >= {"base", "a", "b"}
    assert found["guards"]["kept"]["outcome"] == "passed"
    assert found["winner"]["rows_that_differ_from_the_live_engine"] == []
    assert [finalist["naive"] for finalist in found["finalists"]] == sorted(
        (finalist["naive"] for finalist in found["finalists"]), reverse=True
    )
    for file in ("experiment.yaml", "splits.json", "journal.log", "baseline/base/scores.jsonl", "best/model/model.safetensors"):
        assert (study / file).exists(), file
    trials = sorted((study / "trials").iterdir())
    assert len(trials) == 12
    assert Recipe.read(trials[3] / "recipe.yaml").key()[:8] == trials[3].name[5:]


def test_the_recipe_of_the_best_merges_to_the_same_bytes(laboratory):
    from evomerge.study.verbs import merge

    search(laboratory / "space.yaml", laboratory / "study", workers=1)
    merge(laboratory / "study/best/recipe.yaml", laboratory / "again")

    written = {path.name: path.read_bytes() for path in (laboratory / "study/best/model").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (laboratory / "again").iterdir()}


def test_a_finished_study_is_not_run_again(laboratory):
    study = laboratory / "study"
    ending = search(laboratory / "space.yaml", study, workers=1)
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file() and path.name != "lock"}

    assert search(laboratory / "space.yaml", study, workers=1, resume=True) == ending
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file() and path.name != "lock"} == before


def test_more_trials_go_on_from_a_finished_study_and_another_winner_takes_the_place_of_the_first(laboratory):
    study = laboratory / "study"
    search(laboratory / "space.yaml", study, workers=1, trials=3)
    before, first = parameters(study), certificate(study)["winner"]
    search(laboratory / "space.yaml", study, workers=1, resume=True, trials=25, reopen=True)
    second = certificate(study)["winner"]

    assert parameters(study)[:3] == before
    assert len(parameters(study)) == 25
    assert certificate(study)["sealed_looks"] == 2
    assert second["name"] != first["name"]
    assert (study / "best/recipe.yaml").read_text() == (study / "trials" / second["name"] / "recipe.yaml").read_text()
    assert second["sealed"]["value"] > first["sealed"]["value"]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])  # GP: seconds a trial; see test_samplers.py
def test_an_interrupted_study_proposes_what_it_would_have_proposed(laboratory, sampler):
    learns = {"margins": {"first": 4}, "auto": {"first": 4}}.get(sampler, {})  # or it would begin with its last trial
    space = change(laboratory, search={"sampler": sampler, "sampler_options": learns})
    search(space, laboratory / "whole", workers=1)
    in_pieces(space, laboratory / "study", 1, 5)

    assert parameters(laboratory / "study") == parameters(laboratory / "whole")
    assert ended(laboratory / "study") == ended(laboratory / "whole")
    assert certificate(laboratory / "study")["winner"] == certificate(laboratory / "whole")["winner"]


def test_a_study_that_grows_scores_its_first_trials_on_few_documents_and_none_of_them_wins(laboratory):
    space = change(laboratory, search={"sampler": "margins", "sampler_options": {"first": 4}, "eta": 1, "grow": 5})
    search(space, laboratory / "whole", workers=1)
    in_pieces(space, laboratory / "study", 3, 7)

    folders = sorted((laboratory / "study/trials").iterdir())
    assert [json.loads((folder / "verdict.json").read_text())["rung"] for folder in folders] == [0] * 5 + [1] * 7
    assert parameters(laboratory / "study") == parameters(laboratory / "whole")
    assert int(certificate(laboratory / "study")["winner"]["name"][:4]) >= 5


@pytest.mark.parametrize("trials", [4, 6])  # none on the last rung, and fewer than there are finalists
def test_a_study_that_has_hardly_grown_ends_with_finalists_of_lower_rungs(laboratory, trials):
    space = change(laboratory, search={"eta": 1, "grow": 5, "attribution": 2, "trials": trials})

    assert search(space, laboratory / "study", workers=1) in (0, 3, 5)
    found = certificate(laboratory / "study")
    assert len(found["finalists"]) == 3
    assert [each["name"][:4] == "0005" for each in found["finalists"]] == [trials == 6, False, False]


@pytest.mark.parametrize("moment", ["baseline/average", "trials/0002", "trials/0007", "best/model"])
def test_a_study_killed_at_any_moment_goes_on_where_it_stood(laboratory, moment):
    command = [sys.executable, "-m", "evomerge.cli", "search", str(laboratory / "space.yaml"), "--resume", "--log", "quiet"]
    command += ["--workers", "1", "--out"]
    killed = subprocess.Popen([*command, str(laboratory / "study")], stdout=subprocess.DEVNULL, env=os.environ)
    folder, name = (laboratory / "study" / moment).parent, (laboratory / "study" / moment).name
    deadline = time.monotonic() + 120
    while not list(folder.glob(f"{name}*")) and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    finished = len(parameters(laboratory / "study")) if (laboratory / "study/journal.log").exists() else 0

    done = subprocess.run([*command, str(laboratory / "study")], capture_output=True, text=True)
    search(laboratory / "space.yaml", laboratory / "whole", workers=1)

    assert done.returncode == 0, done.stderr
    assert finished <= 12
    assert parameters(laboratory / "study") == parameters(laboratory / "whole")
    assert certificate(laboratory / "study")["winner"] == certificate(laboratory / "whole")["winner"]


def test_two_workers_find_a_certified_model_too(laboratory):
    assert search(laboratory / "space.yaml", laboratory / "study", workers=2) == 0
    assert len(parameters(laboratory / "study")) == 12


def test_a_failing_candidate_is_recorded_with_its_reason_and_the_run_goes_on(laboratory):
    scorer = laboratory / "scorer.py"
    scorer.write_text(scorer.read_text().replace("FAILS = False", "FAILS = True"))
    search(laboratory / "space.yaml", laboratory / "study", workers=1, trials=25)

    reasons = [json.loads(path.read_text())["reason"] for path in (laboratory / "study/trials").glob("*/verdict.json")]
    assert len(reasons) == 25
    assert any("raised ArithmeticError on task 'near': this candidate cannot be scored" in reason for reason in reasons)


def test_a_budget_ends_in_time_to_certify(laboratory):
    begun = time.monotonic()
    ending = search(laboratory / "space.yaml", laboratory / "study", workers=1, trials=100_000, budget=12)

    assert time.monotonic() - begun < 30
    assert ending in (0, 3, 4, 5)
    assert 1 <= len(parameters(laboratory / "study")) < 100_000


def scored(documents, seconds):
    """A trial of which only the price is known."""
    rows = Scores(tuple(Row("task", doc, str(doc), 1.0) for doc in range(documents)))
    return Outcome("0000-x", Recipe(Source("base"), {}, ()), scores=rows, seconds=seconds)


def test_what_a_document_costs_is_told_by_the_last_trials_and_not_by_a_busy_beginning():
    busy, quick, seen = scored(10, {"score": 8.0, "engine": 2.0}), scored(20, {"score": 1.0, "heal": 9.0}), scored(50, {})

    assert seconds_per_document([], 20) is None
    assert seconds_per_document([busy, quick], 20) == 11.0 / 30
    assert seconds_per_document([busy, *[quick] * 10, seen], 20) == 0.05


def test_trials_that_were_dropped_early_do_not_tell_what_a_document_costs_at_the_end():
    whole, dropped = scored(100, {"score": 1.0}), scored(10, {"score": 0.8})

    assert seconds_per_document([dropped, dropped], 100) is None
    assert seconds_per_document([whole, dropped, dropped], 100) == 0.01


def test_what_healing_takes_is_told_by_those_healed_lately():
    plain, healed = scored(100, {"score": 1.0}), [scored(100, {"score": 1.0, "heal": seconds}) for seconds in range(1, 13)]

    assert seconds_per_healing([plain, plain]) == 0
    assert seconds_per_healing([plain, *healed, plain]) == sum(range(3, 13)) / 10


def test_a_budget_ends_a_search_without_a_number_of_trials_in_a_certificate(laboratory):
    assert search(laboratory / "space.yaml", laboratory / "study", workers=1, trials=10**6, budget=4) == 0

    found = certificate(laboratory / "study")
    assert 3 < found["trials"] < 10**6
    assert found["limits"] == {"trials": 10**6, "budget": 4}


def test_a_clock_counts_what_was_prepared_before_it_and_what_earlier_processes_took(tmp_path):
    with held(Record.open(tmp_path / "study", {}, resume=False)) as record:
        first = Clock(record, time.monotonic() - 100)
        first.write()
        again = Clock(record, time.monotonic() - 10)

        assert (round(first.preparing), round(again.preparing)) == (100, 10)
        assert 110 <= again.elapsed() < 120


def test_a_guard_that_nothing_keeps_refuses(laboratory):
    scorer = laboratory / "scorer.py"
    scorer.write_text(
        scorer.read_text().replace('float(w["layers.0.kept"].abs().mean())', '90 * float(w["layers.0.kept"].abs().mean())')
    )

    assert search(laboratory / "space.yaml", laboratory / "study", workers=1) == 4
    assert not (laboratory / "study/best").exists()


def test_a_search_that_beats_nobody_says_keep_your_parent(laboratory):
    scorer = laboratory / "scorer.py"
    scorer.write_text(scorer.read_text().replace("- 0.6)", "- 0.0)"))

    assert search(laboratory / "space.yaml", laboratory / "study", workers=1) == 3


@pytest.mark.parametrize(
    ("blocks", "differs"),
    [
        ({"search": {"seed": 1}}, "search"),
        ({"suite": {"select": 44}}, "suite, documents"),
        ({"guard": {"tasks": {"kept": 0.2}}}, "guard"),
        ({"recipe": {"seed": 3}}, "space"),
    ],
)
def test_another_experiment_cannot_resume_a_study(laboratory, blocks, differs):
    search(laboratory / "space.yaml", laboratory / "study", workers=1, trials=2)

    with pytest.raises(EvomergeError, match=f"begun with another {differs};"):
        search(change(laboratory, **blocks), laboratory / "study", workers=1, resume=True)


def test_a_changed_source_cannot_resume_a_study(laboratory):
    search(laboratory / "space.yaml", laboratory / "study", workers=1, trials=2)
    (laboratory / "a/model.safetensors").write_bytes((laboratory / "b/model.safetensors").read_bytes())

    with pytest.raises(EvomergeError, match="begun with another source a;"):
        search(laboratory / "space.yaml", laboratory / "study", workers=1, resume=True)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"suite": {"sealed": 2000}}, r"near has 400 and the splits ask for \d+"),
        ({"guard": {"tasks": {"kept": 0.01}}}, "120 sealed documents cannot decide a tolerance of 0.01"),
        ({"guard": {"tasks": {"near": 0.1}}}, "near is a target in suite.tasks and guarded in guard.tasks"),
        ({"guard": {"ewc": {"fisher": "f", "limits": {"base": 1.0}}}}, "guard.ewc: no Fisher of base at "),
        ({"guard": {"tasks": {"near twin": 0.1}}}, "guard.tasks.near twin: 400 of its 400 documents are in suite.tasks.near too"),
        ({"guard": {"ewc": {"fisher": "f", "limits": {"c": 1.0}}}}, "guard.ewc: no source 'c'"),
        ({"search": {"sampler": "cma"}}, "sampler 'cma' is not known; did you mean 'cmaes'?"),
        ({"search": {"budget": "soon"}}, "'soon' is not a duration"),
        ({"search": {"heal_after": 5}}, "there is no rung 5; the last is 1"),
        ({"search": {"grow": 5}}, "search.grow: .* takes one objective and no race; set eta to 1"),
        ({"search": {"grow": 5, "eta": 1, "objectives": ["target", "parameters"]}}, "search.grow: .* takes one objective"),
        ({"recipe": {"base": "nowhere"}}, "nowhere"),
        (
            {"scoring": {"lm_eval": {"apply_chat_template": True}}},
            "apply_chat_template: .* has no chat template; set it to false",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(laboratory, blocks, message):
    with pytest.raises(EvomergeError, match=message):
        search(change(laboratory, **blocks), laboratory / "study", workers=1)

    assert not (laboratory / "study").exists()


def test_what_is_kept_for_the_ending_is_not_taken_from_the_first_eight_trials(laboratory, monkeypatch):
    monkeypatch.setattr(reserve, "MARGIN", 1e9)  # no budget has room for such an ending

    assert search(laboratory / "space.yaml", laboratory / "study", workers=1, budget=600) == 0
    assert certificate(laboratory / "study")["trials"] == reserve.FEWEST == 8


def test_a_baseline_better_than_every_trial_is_what_is_handed_over(laboratory):
    space, study = change(laboratory, search={"sampler": "random", "seed": 3}), laboratory / "study"

    ending = search(space, study, workers=1, trials=2)

    found = certificate(study)
    assert ending == found["ending"] == 0
    assert found["instead"] == "the winner is the baseline average: no finalist is better on the select documents"
    assert found["winner"]["name"] == "average"
    assert list(found["comparisons"]) == ["base", "a", "b"]  # not with itself, nor with others that anybody could try by hand
    values = {name: shown["value"] for name, shown in found["select"].items()}
    finalists = [finalist["select"]["value"] for finalist in found["finalists"]]
    assert values["average"] == max(*values.values(), *finalists)
    assert Recipe.read(study / "best/recipe.yaml") == Recipe.read(study / "baseline/average/recipe.yaml")
    write_report(study)
    assert found["instead"] in (study / "report.md").read_text()


def test_where_guards_stop_every_trial_the_best_baseline_that_keeps_them_wins(laboratory):
    scorer = laboratory / "scorer.py"
    scorer.write_text(
        scorer.read_text().replace('float(w["layers.0.kept"].abs().mean())', '10 * float(w["layers.0.kept"].mean())')
    )
    far = {"range": [1.2, 1.5], "points": 2}  # what is guarded is lost in proportion to the weights
    rules = [{"match": "*", "method": "task_arithmetic", "weight": {"a": far, "b": far}}]
    space = change(laboratory, recipe={"rules": rules}, guard={"tasks": {"kept": 0.16}})

    assert search(space, laboratory / "study", workers=1, trials=4) in (0, 3, 5)

    found = certificate(laboratory / "study")
    assert not found["finalists"]
    assert found["instead"].endswith(": no trial kept the guards")
    assert found["winner"]["name"] in {path.name for path in (laboratory / "study/baseline").iterdir()} - {"base", "a", "b"}
    assert found["guards"]["kept"]["outcome"] != "refused"


def test_a_budget_without_room_for_a_trial_says_so(laboratory):
    ending = search(laboratory / "space.yaml", laboratory / "study", workers=1, budget=0.001)

    assert ending == 3
    assert "no trial was run" in certificate(laboratory / "study")["reasons"][0]


class Best(Nobody):
    """Watches who is said to stand first."""

    def __init__(self):
        self.counting, self.said = False, []

    def phase(self, name, total):
        self.counting = name == "trials"

    def scored(self, outcome, best):
        self.said += [(outcome, best)] * self.counting


def test_who_stands_first_is_told_after_every_trial_and_the_same_recipe_is_scored_once(laboratory):
    """Two equal beginnings, and a search that grows, whose first rung flatters; the second half after an interruption."""
    weight = {name: {"range": [0.0, 1.5], "start": [0.5, 0.5]} for name in ("a", "b")}
    rule = {"match": "*", "method": "task_arithmetic", "weight": weight}
    grows = {"sampler": "random", "eta": 1, "grow": 5, "trials": 10, "baselines": False}
    space, watch = change(laboratory, recipe={"rules": [rule]}, search=grows), Best()
    with pytest.raises(KeyboardInterrupt):
        search(space, laboratory / "study", workers=1, watch=Interrupt(1))

    search(space, laboratory / "study", workers=1, resume=True, watch=watch)

    outcomes = [outcome for outcome, _ in watch.said]
    for place, (_, best) in enumerate(watch.said, start=1):
        standings = [outcome.standing for outcome in outcomes[:place] if outcome.standing]
        assert best == (max(standings)[1] if standings else None)
    assert len(outcomes) == 10
    assert outcomes[1].reason == f"same recipe as {outcomes[0].name}"
