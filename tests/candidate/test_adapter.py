"""LoRA adapters as sources: W + s·B·A, worked out here by hand in float64; tests/oracle compares with PEFT."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from evomerge.candidate.adapter import Adapted
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.merge import dry_run
from evomerge.candidate.stream import Sources, materialize
from evomerge.document import Place
from evomerge.errors import CheckpointError
from evomerge.recipe import Recipe

Q, DOWN, EMBED = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.embed_tokens"
SHAPES = {Q: (64, 64), DOWN: (64, 96)}


def write_adapter(folder, tensors, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **settings}))
    return folder


def lora(module, rank=4, seed=0, shape=None):
    generator = torch.Generator().manual_seed(seed)
    out, into = shape or SHAPES[module]
    down, up = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
    return {f"{module}.lora_A.weight": 0.02 * down, f"{module}.lora_B.weight": 0.02 * up}


def product(tensors, module, scale):
    return scale * tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double()


def opened(family, folder):
    return Checkpoint.open(f"{family / 'base'}+{folder}")


def weight(family, module):
    return load_file(family / "base" / "model.safetensors")[f"{module}.weight"].double()


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),  # 8 / √4
        ({"lora_alpha": 6}, 1.5),
        ({"alpha_pattern": {"q_proj": 32}}, 8.0),
        ({"alpha_pattern": {r"layers\.0.*q_proj": 16, "q_proj": 32}, "use_rslora": True}, 8.0),
        ({"alpha_pattern": {"proj": 32}}, 2.0),  # a pattern matches the end of the name from a dot on
    ],
)
def test_a_tensor_is_the_models_and_the_scaled_product(settings, scale, family, tmp_path):
    tensors = lora(Q)

    model = opened(family, write_adapter(tmp_path / "lora", tensors, **settings))

    assert model.read(f"{Q}.weight").dtype == torch.float64
    assert_close(model.read(f"{Q}.weight"), weight(family, Q) + product(tensors, Q, scale), rtol=0, atol=1e-15)
    assert torch.equal(model.read(f"{DOWN}.weight").double(), weight(family, DOWN))


def test_ranks_may_differ_within_an_adapter(family, tmp_path):
    tensors = lora(Q, rank=2) | lora(DOWN, rank=7)

    model = opened(family, write_adapter(tmp_path / "lora", tensors, r=2, rank_pattern={"down_proj": 7}))

    assert_close(model.read(f"{Q}.weight"), weight(family, Q) + product(tensors, Q, 4.0), rtol=0, atol=1e-15)
    assert_close(model.read(f"{DOWN}.weight"), weight(family, DOWN) + product(tensors, DOWN, 8 / 7), rtol=0, atol=1e-15)


def test_a_tensor_that_lies_transposed_gets_the_product_transposed(family, tmp_path):
    tensors = lora(DOWN, shape=(96, 64))

    model = opened(family, write_adapter(tmp_path / "lora", tensors, fan_in_fan_out=True))

    assert_close(model.read(f"{DOWN}.weight"), weight(family, DOWN) + product(tensors, DOWN, 2.0).T, rtol=0, atol=1e-15)


def test_an_embedding_lies_transposed_by_itself(family, tmp_path):
    down, up = torch.randn(4, 40), torch.randn(64, 4)
    tensors = {f"{EMBED}.lora_embedding_A": down, f"{EMBED}.lora_embedding_B": up}

    model = opened(family, write_adapter(tmp_path / "lora", tensors))

    expected = weight(family, EMBED) + 2 * (up.double() @ down.double()).T
    assert_close(model.read(f"{EMBED}.weight"), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("spelled", ["model.norm.weight", "model.norm.modules_to_save.weight"])
def test_a_module_saved_whole_takes_the_place_of_the_models(spelled, family, tmp_path):
    norm = torch.linspace(0, 1, 64)

    model = opened(family, write_adapter(tmp_path / "lora", lora(Q) | {spelled: norm}))

    assert torch.equal(model.read("model.norm.weight"), norm.double())


def test_merging_halves_of_two_adapters_of_different_ranks_adds_half_of_each_delta(family, tmp_path):
    one, other = lora(Q, rank=3, seed=1), lora(Q, rank=8, seed=2)
    write_adapter(tmp_path / "one", one, r=3)
    write_adapter(tmp_path / "other", other, r=8)
    sources = {name: {"model": str(family / "base"), "adapter": str(tmp_path / name)} for name in ("one", "other")}
    rules = [{"match": "*", "method": "task_arithmetic", "weight": 0.5}]
    data = {"base": str(family / "base"), "sources": sources, "rules": rules, "dtype": "float64"}

    merged = dict(materialize(Recipe.from_data(data, Place("test")), Sources()).weights)

    expected = weight(family, Q) + product(one, Q, 4 / 3) + product(other, Q, 0.5)
    assert_close(merged[f"{Q}.weight"], expected, rtol=0, atol=1e-15)
    assert torch.equal(merged[f"{DOWN}.weight"], weight(family, DOWN))


def test_a_merge_with_an_adapter_is_rounded_once_to_the_dtype_of_the_base(family, tmp_path):
    tensors = lora(Q)
    write_adapter(tmp_path / "lora", tensors)
    sources = {"code": {"model": str(family / "base"), "adapter": str(tmp_path / "lora")}}
    rules = [{"match": "*", "method": "passthrough", "sources": ["code"]}]

    merged = dict(
        materialize(
            Recipe.from_data({"base": str(family / "base"), "sources": sources, "rules": rules}, Place("test")), Sources()
        ).weights
    )

    assert torch.equal(merged[f"{Q}.weight"], (weight(family, Q) + product(tensors, Q, 2.0)).bfloat16())


def test_a_change_of_the_adapter_is_a_change_of_the_key(family, tmp_path):
    before = opened(family, write_adapter(tmp_path / "a", lora(Q))).fingerprint
    assert before == opened(family, write_adapter(tmp_path / "b", lora(Q))).fingerprint

    assert before != opened(family, write_adapter(tmp_path / "c", lora(Q), lora_alpha=9)).fingerprint
    assert before != opened(family, write_adapter(tmp_path / "d", lora(Q, seed=1))).fingerprint
    assert before != Checkpoint.open(family / "base").fingerprint


def test_a_plus_may_be_part_of_a_path(family, tmp_path):
    shutil.copytree(family / "base", tmp_path / "c++")

    assert not isinstance(Checkpoint.open(tmp_path / "c++"), Adapted)


@pytest.mark.parametrize(
    ("tensors", "settings", "words"),
    [
        (lora(Q), {"use_dora": True}, "lora: is a DoRA adapter, which scales whole columns as well; merge it into its model"),
        (lora(Q) | {f"{Q}.lora_magnitude_vector": torch.ones(64)}, {}, "is a DoRA adapter: it has 'base_model.*magnitude"),
        (lora(Q) | {f"{Q}.lora_B.bias": torch.ones(64)}, {}, "is no plain LoRA: it has 'base_model.*lora_B.bias'"),
        (lora(Q), {"peft_type": "IA3"}, "is a IA3 adapter; only LoRA adapters"),
        (lora(Q), {"init_lora_weights": "pissa_niter_4"}, "was begun by pissa_niter_4, which changed the model under it"),
        (lora(Q), {"layer_replication": [[0, 1]]}, "repeats layers of its model"),
        (lora("model.layers.7.mlp.up_proj", shape=(96, 64)), {}, "changes 'model.layers.7.mlp.up_proj', which the model .* not;"),
        (lora(DOWN, shape=(64, 64)), {}, r"makes a tensor of \[64, 64\], '.*down_proj.weight' in .* is \[64, 96\]; name"),
        ({EMBED + ".weight": torch.ones(42, 64)}, {}, r"makes a tensor of \[42, 64\], .*: its vocabulary was resized"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 64)}, {}, "has only one of the two matrices of"),
        (lora(Q) | {f"{Q}.lora_B.weight": torch.ones(64, 5)}, {}, r"are \[4, 64\] and \[64, 5\]: ranks that differ"),
        ({}, {}, "holds no LoRA"),
    ],
)
def test_what_is_no_lora_of_this_model_is_refused(tensors, settings, words, family, tmp_path):
    folder = write_adapter(tmp_path / "lora", tensors, **settings)

    with pytest.raises(CheckpointError, match=words) as caught:
        opened(family, folder)
    assert "\n" not in str(caught.value)


def test_a_tied_head_has_no_adapter(family, tmp_path):
    write_adapter(tmp_path / "lora", lora("lm_head", shape=(40, 64)))

    with pytest.raises(CheckpointError, match="the head is tied to the embedding: save the model untied"):
        Checkpoint.open(f"{family / 'tied-base'}+{tmp_path / 'lora'}")


def test_a_missing_or_pickled_adapter_is_named_with_its_remedy(make, family, tmp_path):
    (tmp_path / "lora").mkdir()
    data = {
        "base": str(family / "base"),
        "sources": {"code": {"model": str(family / "base"), "adapter": str(tmp_path / "lora")}},
        "rules": [{"match": "*", "method": "linear", "weight": 1}],
    }
    recipe = Recipe.from_data(data, Place("test"))

    for written, words in (
        (None, r"^sources.code: .*/lora: has no adapter_config.json; name the folder of a LoRA"),
        ("adapter_config.json", "adapter_model.safetensors: is missing; copy or download it again"),
        ("adapter_model.bin", "adapter_model.bin: is a pickle, .* convert the model to safetensors"),
    ):
        if written:
            (tmp_path / "lora" / written).write_text("{}")
        with pytest.raises(CheckpointError, match=words):
            dry_run(recipe)


def test_an_adapter_is_planned_without_reading_it(family, tmp_path):
    folder = write_adapter(tmp_path / "lora", lora(Q))
    file = folder / "adapter_model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    file.write_bytes(file.read_bytes()[:header] + b"\xff" * (file.stat().st_size - header))  # every number is NaN

    model = opened(family, folder)

    assert re.fullmatch(r"[0-9a-f]{64}", model.fingerprint)
    with pytest.raises(CheckpointError, match=r"lora/adapter_model.safetensors: '.*q_proj.lora_B.weight' has NaN"):
        model.read(f"{Q}.weight")
