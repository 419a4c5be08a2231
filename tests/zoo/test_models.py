"""The shipped models load, are of the shape that was promised, and have the skills that their training aimed at."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge import zoo
from evomerge.zoo.measure import accuracy
from evomerge.zoo.skills import GUARD, TARGETS, Document
from evomerge.zoo.train import BASES, EXPERTS, TIED_SKILL

NAMES = [job.name for job in BASES + EXPERTS]


def load(name: str):
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(zoo.model(name), dtype=torch.float32).eval()


def documents(skill: str, count: int) -> list[Document]:
    lines = (zoo.TASKS / "data" / f"zoo_{skill}.jsonl").read_text().splitlines()[:count]
    return [document(json.loads(line)) for line in lines]


def document(row: dict) -> Document:
    if "answer" in row:
        return Document(row["prompt"], row["answer"])
    right = row["choices"][row["gold"]]
    return Document(row["prompt"], right, tuple(choice for choice in row["choices"] if choice != right))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_loads_with_the_promised_shape_and_finite_weights(name):
    model = load(name)

    shape = (model.config.num_hidden_layers, model.config.num_attention_heads, model.config.num_key_value_heads)
    assert shape == (6, 4, 2)
    assert (model.config.head_dim, model.config.max_position_embeddings) == (32, 256)
    assert model.config.rope_parameters["rope_theta"] == 10000.0
    assert model.config.tie_word_embeddings == name.startswith("tied")
    assert 1.0e6 < sum(value.numel() for value in model.parameters()) < 1.2e6
    assert all(value.isfinite().all() for value in model.parameters())
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(zoo.model(name)))


def test_the_zoo_takes_no_more_than_24_megabytes():
    assert sum(path.stat().st_size for path in zoo.ROOT.rglob("*") if path.is_file()) <= 24e6


def test_the_base_has_the_guard_skill_near_nine_tenths_and_the_targets_in_part():
    base = load("base")

    assert 0.84 <= accuracy(base, documents(GUARD, 300)) <= 0.97
    for skill in TARGETS:
        assert 0.2 <= accuracy(base, documents(skill, 200)) <= 0.75, skill


@pytest.mark.parametrize(("name", "skill"), [*((skill, skill) for skill in TARGETS), (f"tied-{TIED_SKILL}", TIED_SKILL)])
def test_an_expert_has_its_own_skill(name, skill):
    assert accuracy(load(name), documents(skill, 300)) >= 0.75
