"""A refused model mended: the segment by hand, then a study whose winner broke its guard."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.candidate.stream import Sources, materialize
from evomerge.errors import StudyError
from evomerge.report.standing import headline
from evomerge.report.view import View
from evomerge.scoring.scores import Row, Scores
from evomerge.study.executor import Result
from evomerge.study.repair import best_of, between, nearest
from evomerge.study.search import search
from tests.laboratory import change

DOCUMENTS = {"kept": [0]}


def run(life, right):
    """The end of a life whose answers are what `right` makes of the parent's share."""
    result = None
    try:
        while True:
            job = life.send(result)
            share = job.recipe.rules[0].knobs["weight"]["parent"].at(0.0)[0]
            result = Result(Scores.of([Row("kept", 0, "h", right(share))]))
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize("holds_from", [0.01, 0.3, 0.62, 0.96])
def test_bisection_finds_the_least_share_of_the_parent_at_which_the_guards_hold(holds_from):
    life = nearest("model", "parent", DOCUMENTS, lambda s: s.mean("kept") == 1, tries=5)

    share = best_of(run(life, lambda share: float(share >= holds_from)))

    assert holds_from <= share <= holds_from + 1 / 32


def test_where_the_guards_hold_at_the_parent_alone_nothing_is_offered():
    life = nearest("model", "parent", DOCUMENTS, lambda s: s.mean("kept") == 1, tries=5)

    assert best_of(run(life, lambda share: 0.0)) is None


def test_a_point_that_cannot_be_scored_ends_the_repair():
    life = nearest("model", "parent", DOCUMENTS, lambda s: True, tries=5)
    next(life)

    with pytest.raises(StudyError, match=r"the point 0\.5 of the way to parent cannot be scored: broken"):
        life.send(Result(error="broken"))


def test_the_points_of_the_segment_are_weighted_means(laboratory):
    recipe = between(laboratory / "a", laboratory / "base", 0.25)

    merged = dict(materialize(recipe, Sources()).weights)

    ours, theirs = (load_file(laboratory / name / "model.safetensors") for name in ("a", "base"))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.75 * ours[name] + 0.25 * theirs[name])


@pytest.fixture
def forgetful(laboratory):
    """What makes a source good at the target moves the guarded numbers too; one search document of the guard sees nothing of it:
    with the seeds below its document is an easy one."""
    weights = load_file(laboratory / "a/model.safetensors")
    save_file({**weights, "layers.0.kept": torch.full((2, 40), 0.5)}, laboratory / "a/model.safetensors")
    change(laboratory, guard={"search": 1}, search={"trials": 8})
    return laboratory


def test_a_choice_that_breaks_its_guard_is_mended_and_judged_on_those_held_back(forgetful):
    change(forgetful, guard={"select": 60, "repair": 120}, suite={"repair": 100, "seed": 10})

    assert search(forgetful / "space.yaml", forgetful / "study", workers=1) == 4

    repair = json.loads((forgetful / "study/certificate.json").read_text())["repair"]
    assert not repair["second_look"]
    assert 0 < repair["share"] < 1
    assert repair["guards"]["kept"]["n"] == 120
    assert repair["guards"]["kept"]["outcome"] != "refused"
    refused, repaired = (load_file(forgetful / f"study/{f}/model/model.safetensors") for f in ("refused", "repaired"))
    torch.testing.assert_close(repaired["layers.0.kept"], (1 - repair["share"]) * refused["layers.0.kept"])
    splits = json.loads((forgetful / "study/splits.json").read_text())
    for task in ("near", "kept"):
        kinds = [set(splits[kind][task]) for kind in ("search", "select", "sealed", "repair")]
        assert sum(map(len, kinds)) == len(set.union(*kinds))
    assert any("documents that nothing had seen" in line for line in headline(View.of(forgetful / "study")))


def test_without_documents_held_back_it_is_a_second_look(forgetful):
    change(forgetful, guard={"select": 1}, suite={"seed": 5})  # one document chooses: the choice is refused on the sealed ones

    assert search(forgetful / "space.yaml", forgetful / "study", workers=1) == 4

    certificate = json.loads((forgetful / "study/certificate.json").read_text())
    assert certificate["guards"]["kept"]["outcome"] == "refused"
    assert certificate["repair"]["second_look"]
    assert any("second look" in line for line in headline(View.of(forgetful / "study")))


def test_a_study_that_mends_nothing_says_nothing_of_it(forgetful):
    change(forgetful, guard={"select": 1}, suite={"seed": 5}, search={"repair": 0})

    assert search(forgetful / "space.yaml", forgetful / "study", workers=1) == 4

    assert "repair" not in json.loads((forgetful / "study/certificate.json").read_text())
