"""`evomerge merge` on every kind of bad input: exit code 2, one line that says what is wrong where, and nothing written."""

import json
import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import cli

NORM, Q = "model.norm.weight", "model.layers.0.self_attn.q_proj"
ROUTER = [{"match": "*router*", "value": 1}, {"value": 2}]
LINEAR = {"match": "*", "method": "linear", "weight": 0.5}


@pytest.fixture
def models(family, tmp_path):
    """A copy of the family to be spoilt."""
    shutil.copytree(family, tmp_path / "models")
    return tmp_path / "models"


def merge(folder, text, capsys, monkeypatch):
    """The command on this recipe: its exit code and its errors; a folder that it leaves behind is a fault."""
    (folder / "recipe.yaml").write_text(text if isinstance(text, str) else json.dumps(text))
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(sys, "argv", ["evomerge", "merge", str(folder / "recipe.yaml"), "--out", str(folder / "out")])
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("read differently: ")]
    assert sorted(path.name for path in folder.iterdir()) == before
    assert ended.value.code == 2
    assert len(lines) == 1, lines
    return lines[0]


def recipe(*rules, **rest):
    return {"base": "base", "sources": {"math": "math", "code": "code"}, "rules": list(rules) or [LINEAR], **rest}


def change(model, name, tensor):
    tensors = load_file(file := model / "model.safetensors")
    save_file({key: value for key, value in {**tensors, name: tensor}.items() if value is not None}, file, {"format": "pt"})


def adapter(folder, module=Q, **settings):
    folder.mkdir()
    tensors = {
        f"base_model.model.{module}.lora_{side}.weight": torch.ones(size) for side, size in {"A": (4, 64), "B": (64, 4)}.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **settings}))


def over(folder):
    return recipe() | {"sources": {"math": "math", "code": {"model": "base", "adapter": folder}}}


def linked(link, to):
    link.unlink()
    link.symlink_to(to)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (NORM, torch.ones(65).bfloat16(), f"code: source 'code': '{NORM}' has the shape [65] there and [64] in the base"),
        (NORM, torch.ones(64).long(), f"code: source 'code': '{NORM}' is I64 there and BF16 in the base"),
        (NORM, None, f"code: source 'code' has no tensor '{NORM}', the base"),
        ("model.extra", torch.ones(2), "code: source 'code' has a tensor 'model.extra', the base"),
        (NORM, torch.full((64,), float("nan")).bfloat16(), f"code/model.safetensors: '{NORM}' has NaN or infinite values"),
        (NORM, torch.full((64,), float("inf")).bfloat16(), f"code/model.safetensors: '{NORM}' has NaN or infinite values"),
    ],
)
def test_tensors_that_do_not_fit(name, tensor, words, models, capsys, monkeypatch):
    change(models / "code", name, tensor)

    assert words in merge(models, recipe(), capsys, monkeypatch)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([{**LINEAR, "weight": {"math": 1.0, "code": -1.0}}], "rules[0].weight: add up to 0 at "),
        ([{"match": "*", "method": "ties", "density": 1.5}], "rules[0].density: 1.5 is outside [0, 1]"),
        ([{"match": "*", "method": "ties", "density": -0.1}], "rules[0].density: -0.1 is outside [0, 1]"),
        ([{"match": "*", "method": "dare_ties", "weight": 1, "drop_rate": 1.01}], "drop_rate: 1.01 is outside [0, 0.999]"),
        ([{**LINEAR, "weight": {"math": ROUTER, "code": 1}}], "'*router*' matches no tensor"),
        ([{**LINEAR, "match": "*router*"}, LINEAR], "rules[0]: '*router*' matches no tensor"),
        ([{**LINEAR, "match": "*norm*"}], "rules: none matches "),
    ],
)  # fmt: skip
def test_rules_that_do_not_fit(rules, words, models, capsys, monkeypatch):
    assert words in merge(models, recipe(*rules), capsys, monkeypatch)


def test_a_filter_of_mergekit_s_that_matches_nothing(models, capsys, monkeypatch):
    weight = [{"filter": "router", "value": 1.0}, {"value": 0.5}]
    file = {"merge_method": "linear", "models": [{"model": name, "parameters": {"weight": weight}} for name in ("math", "code")]}

    assert "'*router*' matches no tensor" in merge(models, file, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"module": "model.layers.7.self_attn.q_proj"}, "changes 'model.layers.7.self_attn.q_proj', which the model"),
        ({"use_dora": True}, "is a DoRA adapter, which scales whole columns as well"),
        ({"peft_type": "IA3"}, "is a IA3 adapter; only LoRA adapters can be merged"),
    ],
)
def test_adapters_that_do_not_fit(settings, words, models, capsys, monkeypatch):
    adapter(models / "lora", **settings)

    assert words in merge(models, over("lora"), capsys, monkeypatch)


def test_files_that_are_not_there_or_lead_round_in_circles(models, tmp_path, capsys, monkeypatch):
    weights = models / "code/model.safetensors"
    shutil.copy(weights, tmp_path / "elsewhere.safetensors")
    linked(weights, tmp_path / "elsewhere.safetensors")
    assert "code/model.safetensors: leads out of its directory" in merge(models, recipe(), capsys, monkeypatch)
    linked(weights, "model.safetensors")
    assert "code/model.safetensors: is a link that leads back to itself" in merge(models, recipe(), capsys, monkeypatch)
    linked(weights, "gone.safetensors")
    assert "code/model.safetensors: is a link to gone.safetensors, which is missing" in merge(
        models, recipe(), capsys, monkeypatch
    )
    weights.unlink()
    assert "code: has no *.safetensors file" in merge(models, recipe(), capsys, monkeypatch)
    torch.save({}, models / "code/pytorch_model.bin")
    assert "pytorch_model.bin: is a pickle, which can run any code when it is opened; convert" in merge(
        models, recipe(), capsys, monkeypatch
    )
    index = {"weight_map": {NORM: "model-00001-of-00002.safetensors"}}
    (models / "code/model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors: is missing" in merge(models, recipe(), capsys, monkeypatch)
    shutil.rmtree(models / "code")
    os.symlink("code", models / "code")
    assert "sources.code: " + str(models / "code") + ": is a link that leads back to itself" in merge(
        models, recipe(), capsys, monkeypatch
    )
    (models / "code").unlink()
    assert "sources.code: " in merge(models, recipe(), capsys, monkeypatch)
