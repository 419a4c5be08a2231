"""Adapters beside PEFT, which wrote them: our W + s·B·A is its `merge_and_unload` in float64."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.lora import merge_to_lora
from evomerge.document import Place
from evomerge.errors import CheckpointError
from evomerge.recipe import Recipe
from tests.candidate.conftest import llama

KINDS = {
    "LoRA": {"target_modules": ["q_proj", "down_proj"]},
    "rsLoRA": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "lora_alpha": 5},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 9},
        "alpha_pattern": {"down_proj": 32, r"layers\.0.*o_proj": 3},
    },
    "modules saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "embedding": {"target_modules": ["embed_tokens", "k_proj"]},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
}


def trained(model, config, folder):
    """A PEFT model whose adapter's tensors are random, its folder, and what PEFT makes of it merged."""
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().state_dict()


def same(checkpoint, expected):
    for name in checkpoint.tensors:
        assert_close(checkpoint.read(name), expected[name], rtol=1e-12, atol=1e-14, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_llama_with_an_adapter_is_pefts_merge(kind, tmp_path):
    changes = {"attention_bias": True} if kind == "biases" else {}
    model = llama(0, **changes).double()
    model.save_pretrained(tmp_path / "base")

    expected = trained(model, LoraConfig(**{"r": 4, "lora_alpha": 16, **KINDS[kind]}), tmp_path / "lora")

    checkpoint = Checkpoint.open(f"{tmp_path / 'base'}+{tmp_path / 'lora'}")
    assert len(checkpoint.changes) >= 3
    same(checkpoint, expected)


def test_tensors_that_lie_transposed_are_pefts_merge(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=32)).double()
    model.save_pretrained(tmp_path / "base")

    expected = trained(model, LoraConfig(r=3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True), tmp_path / "lora")

    same(Checkpoint.open(f"{tmp_path / 'base'}+{tmp_path / 'lora'}"), expected)


def test_dora_is_refused_as_peft_writes_it(tmp_path):
    model = llama(0)
    model.save_pretrained(tmp_path / "base")
    trained(model, LoraConfig(r=4, target_modules=["q_proj"], use_dora=True), tmp_path / "lora")

    with pytest.raises(CheckpointError, match="is a DoRA adapter"):
        Checkpoint.open(f"{tmp_path / 'base'}+{tmp_path / 'lora'}")


def test_a_merge_written_as_a_lora_loads_in_peft(tmp_path):
    for seed, name in enumerate(("base", "math", "code")):
        llama(seed).save_pretrained(tmp_path / name)
    rules = [{"match": "*", "method": "task_arithmetic", "weight": 0.4}]
    recipe = Recipe.from_data(
        {"base": "base", "sources": {"math": "math", "code": "code"}, "rules": rules}, Place("test"), tmp_path
    )

    merge_to_lora(recipe, tmp_path / "lora", 12)

    wrapped = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "lora")
    merged = wrapped.merge_and_unload().state_dict()
    checkpoint = Checkpoint.open(f"{tmp_path / 'base'}+{tmp_path / 'lora'}")
    assert len(checkpoint.changes) == 15
    for name in checkpoint.tensors:
        assert_close(checkpoint.read(name).float(), merged[name], rtol=1e-5, atol=1e-6)
