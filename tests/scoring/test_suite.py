import subprocess
import sys
from dataclasses import replace

import pytest

from evomerge.document import Place
from evomerge.errors import DocumentError, GuardError, SuiteError
from evomerge.scoring import GuardConfig, ScoringConfig, Splits, Suite, split
from evomerge.scoring.suite import refuse_overlap

PLACE = Place("x.yaml", "suite")
SUITE = Suite({"sort": 1.0, "flip": 1.0, "rank": 1.0}, rungs=(4, 9, 20), select=7, sealed=11, seed=0)
GUARD = GuardConfig({"past": 0.02}, sealed=30)
CATALOGUE = {task: [f"{task}{i}" for i in range(60)] for task in ("sort", "flip", "rank", "past")}


def test_splits_share_no_document_and_rungs_are_nested() -> None:
    splits = split(SUITE, GUARD, CATALOGUE)

    for task in CATALOGUE:
        parts = [splits.search[task], splits.select[task], splits.sealed[task]]
        assert len(set().union(*parts)) == sum(map(len, parts))
        assert splits.rung(0)[task] == splits.rung(2)[task][: len(splits.rung(0)[task])]
        assert splits.rung(1)[task] == splits.rung(0)[task] + splits.new(1)[task]


def test_totals_are_shared_among_the_targets_and_guards_ride_like_the_average_target() -> None:
    splits = split(SUITE, GUARD, CATALOGUE)

    assert splits.rungs == (
        {"sort": 2, "flip": 1, "rank": 1, "past": 2},
        {"sort": 3, "flip": 3, "rank": 3, "past": 3},
        {"sort": 7, "flip": 7, "rank": 6, "past": 7},
    )
    assert {task: len(ids) for task, ids in splits.select.items()} == {"sort": 3, "flip": 2, "rank": 2, "past": 7}
    assert {task: len(ids) for task, ids in splits.sealed.items()} == {"sort": 4, "flip": 4, "rank": 3, "past": 30}


def test_splits_follow_the_documents_and_not_their_order_in_the_file() -> None:
    reversed_ = {task: hashes[::-1] for task, hashes in CATALOGUE.items()}
    splits, mirrored = split(SUITE, GUARD, CATALOGUE), split(SUITE, GUARD, reversed_)

    for task in CATALOGUE:
        assert [59 - doc for doc in mirrored.sealed[task]] == list(splits.sealed[task])
    assert mirrored.hash != splits.hash


def test_a_guard_may_ask_for_more_documents_on_the_rungs_and_on_select() -> None:
    splits = split(SUITE, GuardConfig({"past": 0.5}, sealed=20, search=20, select=11), CATALOGUE)

    assert [rung["past"] for rung in splits.rungs] == [4, 9, 20]  # in proportion to the rungs
    assert (len(splits.select["past"]), len(splits.sealed["past"])) == (11, 20)


def test_a_guard_may_say_its_documents_on_each_rung() -> None:
    guard = GuardConfig.from_data({"tasks": {"past": 0.5}, "sealed": 20, "search": [12, 12, 15]}, PLACE)
    splits = split(SUITE, guard, CATALOGUE)

    assert [rung["past"] for rung in splits.rungs] == [12, 12, 15]
    assert splits.new(1)["past"] == []
    with pytest.raises(SuiteError, match="3 numbers for 2 rungs"):
        split(Suite({"sort": 1.0}, rungs=(4, 9), select=7, sealed=11), guard, CATALOGUE)


def test_another_seed_gives_other_splits() -> None:
    other = Suite(**{**SUITE.to_data(), "rungs": SUITE.rungs, "include": (), "seed": 1})

    assert split(other, GUARD, CATALOGUE).sealed != split(SUITE, GUARD, CATALOGUE).sealed


def test_sealed_documents_stay_sealed_when_more_rungs_are_asked_for() -> None:
    larger = Suite(**{**SUITE.to_data(), "rungs": (4, 9, 20, 60), "include": ()})

    assert split(larger, GUARD, CATALOGUE).sealed == split(SUITE, GUARD, CATALOGUE).sealed


def test_equal_documents_are_used_once() -> None:
    doubled = {task: hashes + hashes for task, hashes in CATALOGUE.items()}

    assert split(SUITE, GUARD, doubled).search == split(SUITE, GUARD, CATALOGUE).search


def test_too_few_documents_are_told_with_both_numbers_for_each_task() -> None:
    short = {**CATALOGUE, "flip": ["a", "a", "b"], "past": ["c"] * 60}

    with pytest.raises(SuiteError, match=r"flip has 2 and the splits ask for 13 .* past has 1 and the splits ask for 44"):
        split(SUITE, GUARD, short)


def test_splits_survive_json_and_their_hash_sees_an_edited_document() -> None:
    splits = split(SUITE, GUARD, CATALOGUE)
    edited = split(SUITE, GUARD, {**CATALOGUE, "sort": [*CATALOGUE["sort"][:-1], "sort new"]})

    assert Splits.from_data(splits.to_data()) == splits
    assert Splits.from_data(splits.to_data()).hash == splits.hash
    assert edited.hash != splits.hash


def test_a_suite_comes_back_from_its_data() -> None:
    assert Suite.from_data(SUITE.to_data(), PLACE) == SUITE
    assert GuardConfig.from_data(GUARD.to_data(), PLACE) == GUARD


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"tasks": {"a": "1"}}, DocumentError, r"x.yaml: suite.tasks.a: '1' is text"),
        ({"tasks": {"a": -1}}, DocumentError, "suite.tasks.a: -1 is outside"),
        ({"tasks": {}}, SuiteError, "no task with a weight above 0"),
        ({"tasks": {"a": 0}}, SuiteError, "no task with a weight above 0"),
        ({"tasks": {"a": 1}, "agregate": "mean"}, DocumentError, "did you mean 'aggregate'"),
        ({"tasks": {"a": 1}, "aggregate": "max"}, DocumentError, "'max' is not known"),
        ({"tasks": {"a": 1}, "rungs": [9, 9]}, SuiteError, "must grow from rung to rung"),
        ({"tasks": {"a": 1, "b": 1}, "rungs": [1, 9]}, SuiteError, r"at least one document per task \(2\)"),
        ({"tasks": {"a": 1}, "rungs": ["9"]}, DocumentError, "expected a whole number"),
        ({"tasks": {"a": 1}, "include": "nowhere"}, SuiteError, "nowhere is not a folder"),
    ],
)
def test_a_wrong_suite_is_refused(data: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Suite.from_data(data, PLACE)


def test_included_folders_are_taken_from_beside_the_file(tmp_path) -> None:
    (tmp_path / "tasks").mkdir()

    suite = Suite.from_data({"tasks": {"a": 1}, "include": "tasks"}, PLACE, tmp_path)

    assert suite.include == (str(tmp_path / "tasks"),)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"ewc": 0.1}, DocumentError, "guard.ewc: expected a mapping, found a number"),
        ({"ewc": {"fisher": "f", "limits": {}}}, GuardError, "guard.ewc: neither limits a source nor weighs one"),
        ({"ewc": {"fisher": "f", "limits": {"base": -1}}}, DocumentError, "-1 is outside"),
        ({"tasks": {"past": 2}}, DocumentError, "guard.tasks.past: 2 is outside"),
        ({"tasks": {"past": 0.1}, "seald": 5}, DocumentError, "did you mean 'sealed'"),
        ({"tasks": {"past": 0.1}, "search": [9, 8]}, GuardError, "must not shrink from rung to rung"),
        ({"tasks": {"past": 0.1}, "search": []}, GuardError, "must not shrink from rung to rung"),
        ({"tasks": {"past": 0.1}, "search": [9, "8"]}, DocumentError, "guard.search.1: expected a whole number"),
    ],
)
def test_a_wrong_guard_is_refused(data: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GuardConfig.from_data(data, Place("x.yaml", "guard"))


def test_a_guarded_task_is_no_target() -> None:
    with pytest.raises(SuiteError, match=r"x.yaml: sort is a target in suite.tasks and guarded in guard.tasks"):
        refuse_overlap(SUITE, GuardConfig({"sort": 0.02}), Place("x.yaml"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"with": "vlm"}, "'vlm' is not known; did you mean 'vllm'"),
        ({"with": "hf", "engine": {"max_model_len": 9}}, "engine: belongs to `with: vllm`"),
        ({"with": "function", "function": "mine:score"}, "needs 'documents'"),
        ({"with": "function", "function": "mine", "documents": "mine:docs"}, "expected module:function"),
        ({"documents": "mine:docs"}, "belong to `with: function`"),
        ({"lm_eval": {"num_fewshots": 3}}, "did you mean 'num_fewshot'"),
        ({"dtype": "fp32"}, "scoring.dtype: 'fp32' is not known"),
    ],
)
def test_a_wrong_scoring_block_is_refused(data: dict, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        ScoringConfig.from_data(data, Place("x.yaml", "scoring"))


def test_a_scoring_block_comes_back_from_its_data() -> None:
    config = ScoringConfig.from_data({"with": "vllm", "engine": {"max_model_len": 512}, "lm_eval": {"num_fewshot": 4}}, PLACE)

    assert ScoringConfig.from_data(config.to_data(), PLACE) == config


def test_suites_and_scores_load_no_heavy_library() -> None:
    heavy = "('torch', 'transformers', 'lm_eval', 'datasets', 'numpy', 'scipy')"
    code = f"import sys, evomerge.scoring; print([name for name in {heavy} if name in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_documents_held_back_for_repair_lie_between_sealed_and_select() -> None:
    catalogue = {task: [f"{task}{i}" for i in range(400)] for task in ("sort", "past")}
    suite = Suite({"sort": 1.0}, rungs=(20, 40), select=30, sealed=50)
    without = split(suite, GuardConfig({"past": 0.02}, sealed=60), catalogue)

    held = split(replace(suite, repair=25), GuardConfig({"past": 0.02}, sealed=60, repair=35), catalogue)

    assert without.repair == {}
    assert "repair" not in without.to_data()
    assert {task: len(docs) for task, docs in held.repair.items()} == {"sort": 25, "past": 35}
    assert held.sealed == without.sealed
    for task in held.search:
        parts = [held.search[task], held.select[task], held.sealed[task], held.repair[task]]
        assert len(set().union(*parts)) == sum(map(len, parts))
    assert Splits.from_data(held.to_data()) == held
    assert Splits.from_data(held.to_data()).repair == held.repair
    with pytest.raises(SuiteError, match=r"give suite\.repair too"):
        split(suite, GuardConfig({"past": 0.02}, repair=35), catalogue)
