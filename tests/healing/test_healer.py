"""A recipe that heals: the same bytes every time, teachers asked once, and nothing left in the borrowed model's way."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.candidate import live
from evomerge.candidate.stream import Sources, materialize
from evomerge.document import Place
from evomerge.errors import RecipeError
from evomerge.healing.healer import Healer
from evomerge.recipe import Recipe, locate


@pytest.fixture
def recipe(tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "sort dacb=abcd"}\n{"text": "flip abc=cba"}\n')
    return Recipe.from_data(
        {
            "base": "zoo:models/base",
            "sources": {"sort": "zoo:models/sort"},
            "rules": [{"match": "*", "method": "task_arithmetic", "weight": 0.3}],
            "heal": {"tokens": 512, "texts": str(texts), "teachers": {"base": 0.5, "sort": 0.5}, "mixture": "likelihood"},
        },
        Place("x.yaml"),
    )


def tensors(candidate):
    return dict(candidate.weights)


def test_the_same_recipe_heals_to_the_same_bytes_whoever_heals_it(recipe):
    first, second = (tensors(Healer(Sources(resident=resident))(recipe)) for resident in (True, False))

    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {tensor.dtype for tensor in first.values()} == {torch.bfloat16}


def test_healing_changes_the_merge_and_its_key(recipe):
    sources = Sources(resident=True)
    plain, healed = materialize(replace(recipe, heal=None), sources), Healer(sources)(recipe)

    assert plain.key != healed.key
    assert any(not torch.equal(tensor, tensors(healed)[name]) for name, tensor in plain.weights)


def test_what_was_healed_is_remembered(recipe):
    healer = Healer(Sources(resident=True))

    assert healer(recipe) is healer(recipe)
    assert healer.trained == 1


def test_a_borrowed_model_is_trained_and_said_to_be(recipe):
    sources = Sources(resident=True)
    module = live.module(sources.checkpoint("zoo:models/base").config)
    healer = Healer(sources, module)
    healed = healer(recipe)

    assert healer.module(recipe) is module
    live.load(healed, module)
    assert torch.equal(module.model.norm.weight.to(torch.bfloat16), tensors(healed)["model.norm.weight"])


def test_a_source_without_a_config_cannot_be_healed(recipe, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "plain").mkdir()
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "plain/model.safetensors")
    bare = replace(recipe, base=replace(recipe.base, model=str(tmp_path / "plain")), sources=dict(recipe.sources))
    bare = replace(bare, sources={"sort": bare.base})

    with pytest.raises(RecipeError, match=r"has no config\.json; only transformers models can be healed"):
        Healer(Sources())(bare)


def test_the_zoo_is_what_transformers_loads():
    config = LlamaConfig.from_pretrained(locate("zoo:models/base"))

    assert LlamaForCausalLM(config).num_parameters() == sum(
        info.elements for info in Sources().checkpoint("zoo:models/base").tensors.values()
    )
