"""How far a model moved, in a search and outside of one: elastic weights as a price, KL to the parent that is named."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evomerge.document import dump_yaml
from evomerge.errors import GuardError
from evomerge.recipe import locate
from evomerge.report.tables import judgement_table
from evomerge.study.search import search
from evomerge.study.verbs import evaluate, guard
from evomerge.zoo.tokenizer import encode
from tests.laboratory import change


def notes(study):
    return [json.loads(path.read_text()) for path in sorted(study.glob("trials/*/verdict.json"))]


def test_the_objective_pays_for_the_penalty_what_its_weight_says(anchored):
    change(anchored, guard={"ewc": {"fisher": "fishers", "weights": {"base": 0.01}}}, search={"trials": 8, "eta": 1})

    search(anchored / "space.yaml", anchored / "study", workers=1)

    found = notes(anchored / "study")
    assert max(note["distances"]["ewc base"] for note in found) > 1
    for note in found:
        assert note["told"] == pytest.approx(note["estimate"]["value"] - 0.01 * note["distances"]["ewc base"])
        assert "ewc base" not in note["constraints"]
    parent = json.loads((anchored / "study/baseline/a/verdict.json").read_text())
    moved = load_file(anchored / "a/model.safetensors")["layers.0.w"]
    assert parent["distances"]["ewc base"] == pytest.approx(0.5 * float((0.5 * moved**2).sum()))


def test_finalists_are_those_that_are_best_after_the_price(anchored):
    change(anchored, guard={"ewc": {"fisher": "fishers", "weights": {"base": 0.05}}}, search={"trials": 12, "finalists": 2})

    search(anchored / "space.yaml", anchored / "study", workers=1)

    certificate = json.loads((anchored / "study/certificate.json").read_text())
    folders = {path.parent.name: json.loads(path.read_text()) for path in anchored.glob("study/trials/*/verdict.json")}
    top = [n["told"] for n in folders.values() if n["state"] == "survived" and not any(v > 0 for v in n["constraints"].values())]
    finalists = [folders[finalist["name"]]["told"] for finalist in certificate["finalists"]]
    assert finalists == sorted(set(top), reverse=True)[:2]


@pytest.mark.parametrize(("limit", "outcome"), [(100.0, "passed"), (20.0, "refused")])
def test_a_model_is_held_to_its_penalty_outside_a_search(anchored, limit, outcome):
    """½ · 80 numbers · .5 · 1.2² = 28.8; no guard task is needed for it."""
    change(anchored, guard={"tasks": {}, "ewc": {"fisher": "fishers", "limits": {"base": limit}}})

    judgement = guard(anchored / "a", anchored / "base", anchored / "space.yaml", out=anchored / "verdict.json")

    assert judgement.outcome == outcome
    told = json.loads((anchored / "verdict.json").read_text())["distances"]["ewc base"]
    assert told == {"value": pytest.approx(28.8), "limit": limit, "kept": outcome == "passed"}
    assert f"ewc base  {outcome}" in judgement_table(judgement)


def test_scores_alone_do_not_tell_how_far_a_model_moved(anchored):
    space = change(anchored, guard={"ewc": {"fisher": "fishers", "limits": {"base": 1.0}}})
    evaluate(anchored / "a", space, split_name="sealed").write(anchored / "a.jsonl")

    with pytest.raises(
        GuardError, match=r"scores do not tell how far a model moved \(ewc base\); give the model instead of .*a.jsonl"
    ):
        guard(anchored / "a.jsonl", anchored / "base", space)


RULE = {"match": "*", "method": "task_arithmetic", "weight": {"rank": {"range": [0.0, 1.0]}}}
ZOO = {
    "recipe": {"base": "zoo:models/base", "sources": {"rank": "zoo:models/rank"}, "rules": [RULE]},
    "suite": {"include": "zoo:tasks", "tasks": {"zoo_sort": 1.0}, "rungs": [2], "select": 2, "sealed": 2},
    "guard": {"tasks": {}, "kl": 0.5, "kl_p95": 100.0, "kl_prompts": "prompts.jsonl"},
}
PROMPTS = ["sort dacb=abcd\n", "past blim=blimmed\n"]


def test_kl_is_that_of_the_models_themselves_from_the_parent_that_is_named(tmp_path):
    (tmp_path / "suite.yaml").write_text(dump_yaml(ZOO))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PROMPTS))
    base, rank = (locate(f"zoo:models/{name}") for name in ("base", "rank"))

    there, back = guard(rank, base, tmp_path / "suite.yaml"), guard(base, rank, tmp_path / "suite.yaml")
    itself = guard(base, base, tmp_path / "suite.yaml")

    assert there.distances["kl"].value == pytest.approx(by_hand(base, rank), rel=1e-4)
    assert back.distances["kl"].value == pytest.approx(by_hand(rank, base), rel=1e-4)
    assert (there.outcome, itself.outcome) == ("refused", "passed")
    assert itself.distances["kl"].value == pytest.approx(0, abs=1e-6)


def by_hand(parent, candidate):
    """Mean over all tokens, in float64, by transformers."""
    p, q = (AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64) for place in (parent, candidate))
    with torch.inference_mode():
        logs = [[m(torch.tensor([encode(text)])).logits[0].log_softmax(-1) for m in (p, q)] for text in PROMPTS]
    return float(torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in logs]).mean())
