"""Guards on weights in a study: summed as the stream flows by, told to the sampler, a reason to stop."""

import json

import pytest
from safetensors.torch import load_file

from evomerge.candidate.stream import Sources, materialize
from evomerge.recipe import Recipe
from evomerge.study.search import search
from tests.laboratory import change


def trials(study):
    """Recipe and notes of every trial."""
    folders = sorted(study.glob("trials/*"))
    return [(Recipe.read(f / "recipe.yaml"), json.loads((f / "verdict.json").read_text())) for f in folders]


def test_every_trial_has_the_penalty_of_its_weights_and_the_sampler_its_excess(anchored):
    change(anchored, guard={"ewc": {"fisher": "fishers", "limits": {"base": 8.0}}}, search={"trials": 6})

    search(anchored / "space.yaml", anchored / "study", workers=1)

    base = load_file(anchored / "base/model.safetensors")["layers.0.w"]
    for recipe, notes in trials(anchored / "study"):
        merged = dict(materialize(recipe, Sources()).weights)["layers.0.w"]
        expected = 0.5 * float((0.5 * (merged - base) ** 2).sum())
        assert notes["distances"] == {"ewc base": pytest.approx(expected)}
        assert notes["constraints"]["ewc base"] == pytest.approx(expected - 8.0)


def test_a_candidate_beyond_its_limit_is_stopped_and_never_chosen(anchored):
    change(anchored, guard={"ewc": {"fisher": "fishers", "limits": {"base": 0.0}}}, search={"trials": 4})

    ending = search(anchored / "space.yaml", anchored / "study", workers=1)

    moved = [notes for _, notes in trials(anchored / "study") if notes["distances"]["ewc base"] > 0]
    assert moved
    assert {notes["reason"] for notes in moved} == {"guard"}
    assert ending in (3, 4)


def test_a_study_resumed_remembers_how_far_its_trials_moved(anchored):
    change(anchored, guard={"ewc": {"fisher": "fishers", "limits": {"base": 8.0}}}, search={"trials": 4})
    search(anchored / "space.yaml", anchored / "study", workers=1)

    search(anchored / "space.yaml", anchored / "study", workers=1, trials=6, resume=True, reopen=True)

    certificate = json.loads((anchored / "study/certificate.json").read_text())
    assert certificate["winner"]["distances"].keys() == {"ewc base"}
    assert len(trials(anchored / "study")) == 6
