"""Mixture-of-experts and vision-language checkpoints, tiny and random: merged by the names on disk."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
)

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.merge import describe_plan, dry_run, merge
from evomerge.document import Place
from evomerge.errors import CheckpointError
from evomerge.recipe import Recipe
from tests.candidate.conftest import WORDS, llama, write_tokenizer

TEXT = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "pad_token_id": 0}
LINEAR = {"match": "*", "method": "linear", "weight": {"base": 0.3, "text": 0.7}}
EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 8}


def llava(seed):
    torch.manual_seed(seed)
    seeing = CLIPVisionConfig(**EYES, patch_size=4, projection_dim=32)
    config = LlavaConfig(vision_config=seeing, text_config=LlamaConfig(**TEXT), image_token_index=39, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config)


def mixtral(seed):
    torch.manual_seed(seed)
    return MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=3, num_experts_per_tok=2))


def rename(folder, change):
    file = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    for seed, name in enumerate(("eyes", "other-eyes")):
        llava(seed).save_pretrained(root / name)
    for seed, name in enumerate(("text", "other-text")):
        llama(seed + 5).save_pretrained(root / name)
    for seed, name in enumerate(("experts", "other-experts")):
        mixtral(seed).save_pretrained(root / name)
    return root


def recipe(root, base, *sources, rules=None, **rest):
    rules = rules or [{"match": "*", "method": "task_arithmetic", "weight": 0.5}]
    data = {"base": base, "sources": {name: name for name in sources}, "rules": rules, **rest}
    return Recipe.from_data(data, Place("test"), root)


def weights(folder):
    return load_file(folder / "model.safetensors")


def newer(name):
    """As transformers 5 names the tensors of a vision-language model in memory, and some write them."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1)
    return name.removeprefix("language_model.") if "lm_head" in name else f"model.{name}"


@pytest.mark.parametrize("spelled", [lambda name: name, newer], ids=["language_model.model", "model.language_model"])
def test_a_language_model_is_merged_into_the_text_tower_and_the_rest_is_carried(spelled, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "models")
    rename(tmp_path / "models" / "eyes", spelled)
    asked = recipe(
        tmp_path / "models", "eyes", "text", rules=[{"match": "*", "method": "linear", "weight": {"base": 0.3, "text": 0.7}}]
    )

    out = merge(asked, tmp_path / "out")

    merged, base, text = weights(out), weights(tmp_path / "models" / "eyes"), weights(folder / "text")
    assert merged.keys() == base.keys()
    for name in text:
        target = spelled(f"language_model.{name}")
        assert_close(merged[target], 0.3 * base[target] + 0.7 * text[name], rtol=1e-6, atol=1e-8)
    carried = merged.keys() - {spelled(f"language_model.{name}") for name in text}
    assert len(carried) == 59
    assert all(torch.equal(merged[name], base[name]) for name in carried)


def test_the_merged_model_loads_and_its_text_tower_speaks_as_the_source(folder, tmp_path):
    out = merge(
        recipe(folder, "eyes", "text", rules=[{"match": "*", "method": "passthrough", "sources": ["text"]}]), tmp_path / "out"
    )

    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        seeing = AutoModelForImageTextToText.from_pretrained(out)(input_ids=ids).logits
        text = AutoModelForCausalLM.from_pretrained(folder / "text")(input_ids=ids).logits
    assert_close(seeing, text, rtol=1e-5, atol=1e-5)


def test_the_plan_says_what_is_carried(folder):
    lines = describe_plan(dry_run(recipe(folder, "eyes", "text"))).splitlines()

    assert lines[-1] == "note: 59 tensors that a source has not ('multi_modal_projector.linear_1.bias', …) are the base's"


def test_two_that_see_are_merged_whole(folder, tmp_path):
    out = merge(recipe(folder, "eyes", "other-eyes"), tmp_path / "out")

    merged, base, other = weights(out), weights(folder / "eyes"), weights(folder / "other-eyes")
    for name in base:
        assert_close(merged[name], (base[name] + other[name]) / 2, rtol=1e-5, atol=1e-7)


def test_beside_a_language_model_what_sees_is_carried_from_the_base(folder, tmp_path):
    out = merge(recipe(folder, "eyes", "other-eyes", "text"), tmp_path / "out")

    merged, base, other = weights(out), weights(folder / "eyes"), weights(folder / "other-eyes")
    name = "language_model.model.norm.weight"
    expected = base[name] + 0.5 * (other[name] - base[name]) + 0.5 * (weights(folder / "text")["model.norm.weight"] - base[name])
    assert_close(merged[name], expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(merged["vision_tower.post_layernorm.bias"], base["vision_tower.post_layernorm.bias"])


def test_a_language_model_of_another_shape_has_no_tower(folder, tmp_path):
    shutil.copytree(folder / "eyes", tmp_path / "eyes")
    llama(0, num_hidden_layers=3).save_pretrained(tmp_path / "text")

    with pytest.raises(CheckpointError, match="source 'text' is of another architecture"):
        dry_run(recipe(tmp_path, "eyes", "text"))


def test_heads_of_another_number_are_seen_though_the_shapes_agree(folder, tmp_path):
    shutil.copytree(folder / "eyes", tmp_path / "eyes")
    llama(0, num_attention_heads=8, num_key_value_heads=4, head_dim=8).save_pretrained(tmp_path / "text")

    with pytest.raises(CheckpointError, match=r"than the text tower of the base .*: num_attention_heads is 8 there and 4 here"):
        dry_run(recipe(tmp_path, "eyes", "text"))


def test_a_text_tower_takes_a_source_with_tokens_of_its_own(folder, tmp_path):
    shutil.copytree(folder / "eyes", tmp_path / "eyes")
    write_tokenizer(tmp_path / "eyes")
    shutil.copytree(folder / "text", tmp_path / "text")
    write_tokenizer(tmp_path / "text", [*reversed(WORDS)])
    embed = weights(folder / "eyes")["language_model.model.embed_tokens.weight"]
    tensors = weights(folder / "text") | {"model.embed_tokens.weight": (embed + 0.001).flip(0).contiguous()}
    save_file(tensors, tmp_path / "text" / "model.safetensors")

    out = merge(recipe(tmp_path, "eyes", "text", tokenizer="base"), tmp_path / "out")

    assert_close(weights(out)["language_model.model.embed_tokens.weight"], embed + 0.0005, rtol=0, atol=1e-6)


def test_experts_are_merged_by_their_names_and_a_rule_takes_the_router(folder, tmp_path):
    router = {"match": "*.gate.weight", "method": "passthrough", "sources": ["other-experts"]}
    rest = {"match": "*", "method": "linear", "sources": ["base", "other-experts"], "weight": 0.5}

    out = merge(recipe(folder, "experts", "other-experts", rules=[router, rest]), tmp_path / "out")

    merged, base, other = weights(out), weights(folder / "experts"), weights(folder / "other-experts")
    assert sum(".experts." in name for name in merged) == 2 * 3 * 3
    for name in base:
        expected = other[name] if name.endswith(".gate.weight") else (base[name] + other[name]) / 2
        assert_close(merged[name], expected, rtol=1e-6, atol=1e-8)
    assert AutoModelForCausalLM.from_pretrained(out)(input_ids=torch.tensor([[1, 2]])).logits.isfinite().all()


def test_what_lies_in_several_files_and_is_tied_is_one_model(folder, tmp_path):
    for seed, name in enumerate(("base", "source")):
        llama(seed, tied=True).save_pretrained(tmp_path / name, max_shard_size="60KB")
    assert len(set(Checkpoint.open(tmp_path / "base").files.values())) > 1

    out = merge(recipe(tmp_path, "base", "source"), tmp_path / "out")

    ids = torch.tensor([[1, 2, 3]])
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert "lm_head.weight" not in weights(out)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded(input_ids=ids).logits.isfinite().all()
