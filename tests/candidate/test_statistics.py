"""Fisher averaging and RegMean from files to files: what the verbs store is what the merge takes."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.candidate.merge import merge
from evomerge.candidate.statistics import gram
from evomerge.document import Place
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import Recipe
from evomerge.study.verbs import estimate_fisher, estimate_gram

TEXTS = ["w1 w2 w3 w4 w5", "w7 w8 w9", "w30 w31 w2 w1"]
Q, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def measured(family, tmp_path_factory):
    root = tmp_path_factory.mktemp("measured")
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for name in ("math", "code"):
        estimate_fisher(family / f"whole-{name}", root / "texts.jsonl", root / f"{name}-fisher.safetensors")
        estimate_gram(family / f"whole-{name}", root / "texts.jsonl", root / f"{name}-gram.safetensors")
    return root


def recipe(family, measured, method, kind, **rest):
    sources = {
        name: {"model": str(family / f"whole-{name}"), kind: str(measured / f"{name}-{kind}.safetensors")}
        for name in ("math", "code")
    }
    data = {"base": str(family / "whole-base"), "sources": sources, "rules": [{"match": "*", "method": method, **rest}]}
    return Recipe.from_data(data, Place("test"))


def models(family):
    return [load_file(family / f"whole-{name}" / "model.safetensors") for name in ("math", "code")]


def test_fisher_averaging_takes_what_evomerge_fisher_stores(family, measured, tmp_path):
    asked = recipe(family, measured, "fisher", "fisher", epsilon=1e-9)
    assert Recipe.from_data(asked.to_data(), Place("again")) == asked

    merged = load_file(merge(asked, tmp_path / "out") / "model.safetensors")

    f1, f2 = (load_file(measured / f"{name}-fisher.safetensors") for name in ("math", "code"))
    one, two = models(family)
    for name in merged:
        a, b = f1[name].double() + 1e-9, f2[name].double() + 1e-9
        assert_close(merged[name].double(), (a * one[name] + b * two[name]) / (a + b), rtol=1e-5, atol=1e-6)


def test_a_gram_matrix_is_of_what_goes_into_the_layer(family, measured):
    folder = family / "whole-math"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total, count = torch.zeros(64, 64, dtype=torch.float64), 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            x = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))[0].double()
        total, count = total + x.T @ x, count + len(x)

    stored = load_file(measured / "math-gram.safetensors")

    assert_close(stored[Q].double(), total / count, rtol=1e-5, atol=1e-6)
    assert set(stored) == {name for name, tensor in models(family)[0].items() if tensor.dim() == 2 and "embed" not in name}


def test_regmean_takes_what_evomerge_gram_stores(family, measured, tmp_path):
    merged = load_file(merge(recipe(family, measured, "regmean", "gram", alpha=0.8), tmp_path / "out") / "model.safetensors")

    def stored(name):
        g = load_file(measured / f"{name}-gram.safetensors")[Q].double()
        return 0.8 * g + 0.2 * torch.diag(g.diagonal())

    (one, two), a, b = models(family), stored("math"), stored("code")
    expected = torch.linalg.lstsq(a + b, a @ one[Q].double().T + b @ two[Q].double().T).solution.T
    assert_close(merged[Q].double(), expected, rtol=1e-4, atol=1e-5)
    assert_close(merged[NORM], (one[NORM] + two[NORM]) / 2)


def test_what_was_measured_is_part_of_the_key(family, measured, tmp_path):
    from evomerge.candidate.stream import Sources

    asked = recipe(family, measured, "fisher", "fisher")
    before = asked.key(Sources().fingerprints(asked))
    for name in ("math", "code"):
        (tmp_path / f"{name}-fisher.safetensors").write_bytes((measured / f"{name}-fisher.safetensors").read_bytes())
    same = recipe(family, tmp_path, "fisher", "fisher")
    assert same.key(Sources().fingerprints(same)) == before

    (tmp_path / "code-fisher.safetensors").write_bytes((measured / "math-fisher.safetensors").read_bytes())

    assert same.key(Sources().fingerprints(same)) != before


def test_numbers_that_are_missing_or_of_another_model_are_named(family, measured, make, tmp_path):
    with pytest.raises(RecipeError, match=re.escape("math: has no 'fisher'; add `fisher: NAME.safetensors` to it, made by:")):
        merge(make(prefix="whole-", method="fisher"), tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match=r"math-gram.safetensors: no such file \(sources.math.gram\); make it"):
        merge(recipe(family, tmp_path / "none", "regmean", "gram"), tmp_path / "out")
    strange = {f"{name}-gram.safetensors": measured / f"{name}-fisher.safetensors" for name in ("math", "code")}
    for name, file in strange.items():
        (tmp_path / name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"math-gram.safetensors: .* does not fit .*whole-math; make it anew"):
        merge(recipe(family, tmp_path, "regmean", "gram"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_token_gives_no_gram_matrix(family):
    with pytest.raises(CheckpointError, match="gram: the texts hold no token"):
        gram(AutoModelForCausalLM.from_pretrained(family / "whole-math"), [], [])
