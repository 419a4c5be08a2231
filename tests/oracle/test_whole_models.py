"""Whole models through mergekit 0.1.5's own YAML, in float64: gradients, filters and slices, against our rules and curves.

mergekit takes the first value of a gradient for embedding, final norm and head; we take the curve's end for the last two. So
`outside` writes a rule for each of them.
"""

import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from torch.testing import assert_close

from evomerge.candidate.stream import Sources, materialize
from evomerge.document import Place
from evomerge.recipe import COUNTS, Recipe
from tests.candidate.conftest import llama

LAYERS = 4
OUTSIDE = ("model.embed_tokens*", "model.norm*", "lm_head*")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "math", "code")):
        model = llama(0, num_hidden_layers=LAYERS).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.02 * noise if seed else 0.0 * noise)
        model.save_pretrained(root / name)
    return root


def of_mergekit(models, config, out):
    config = {"dtype": "float64", **config}
    run_merge(MergeConfiguration.model_validate(config), str(out), MergeOptions(quiet=True, copy_tokenizer=False))
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def ours(models, rules, dtype="float64"):
    sources = {name: name for name in ("math", "code")}
    recipe = Recipe.from_data({"base": "base", "sources": sources, "rules": rules, "dtype": dtype}, Place("test"), models)
    return dict(materialize(recipe, Sources()).weights)


def same(merged, expected, rtol=1e-12, atol=1e-14):
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        assert_close(tensor, expected[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def outside(rule):
    """The rule for what lies outside the layers: of every gradient its first value."""

    def first(value):
        if isinstance(value, dict):
            return {key: first(item) for key, item in value.items()}
        return value[0] if isinstance(value, list) else value

    fixed = {key: value if key == "sources" else first(value) for key, value in rule.items()}
    return [{**fixed, "match": match} for match in OUTSIDE]


def test_ties_with_gradients_and_filters(models, tmp_path):
    density, attention = {"math": [0.3, 0.8, 0.5], "code": 0.6}, {"math": [0.2, 0.9], "code": [1.0, 0.5, -0.3]}
    config = {
        "merge_method": "ties",
        "base_model": str(models / "base"),
        "models": [
            {
                "model": str(models / "math"),
                "parameters": {
                    "density": density["math"],
                    "weight": [
                        {"filter": "self_attn", "value": attention["math"]},
                        {"filter": "mlp", "value": 0.5},
                        {"value": 0.7},
                    ],
                },
            },
            {
                "model": str(models / "code"),
                "parameters": {
                    "density": density["code"],
                    "weight": [{"filter": "self_attn", "value": attention["code"]}, {"value": 0.4}],
                },
            },
        ],
        "parameters": {"lambda": [0.5, 1.1]},
    }
    rest = {"method": "ties", "density": density, "lambda": [0.5, 1.1]}

    rules = [
        *outside({**rest, "weight": {"math": 0.7, "code": 0.4}}),
        {**rest, "match": "*self_attn*", "weight": attention},
        {**rest, "match": "*mlp*", "weight": {"math": 0.5, "code": 0.4}},
        {**rest, "match": "*", "weight": {"math": 0.7, "code": 0.4}},
    ]

    same(ours(models, rules), of_mergekit(models, config, tmp_path))


def test_slerp_with_gradients_and_filters(models, tmp_path):
    attention, mlp = [0, 0.5, 0.3, 0.7, 1], [1, 0.5, 0.7, 0.3, 0]
    config = {
        "merge_method": "slerp",
        "base_model": str(models / "base"),
        "slices": [{"sources": [{"model": str(models / name), "layer_range": [0, LAYERS]} for name in ("base", "math")]}],
        "parameters": {"t": [{"filter": "self_attn", "value": attention}, {"filter": "mlp", "value": mlp}, {"value": 0.5}]},
    }
    rule = {"method": "slerp", "sources": ["math"]}

    rules = [
        {**rule, "match": "*self_attn*", "t": attention},
        {**rule, "match": "*mlp*", "t": mlp},
        {**rule, "match": "*", "t": 0.5},
    ]

    same(ours(models, rules), of_mergekit(models, config, tmp_path))


def test_slices_with_parameters_of_their_own(models, tmp_path):
    """A gradient runs within its slice; what comes before the layers takes the first slice's, what comes after the last one's."""
    weights = [{"math": [0.2, 0.8], "code": 0.5}, {"math": 1.0, "code": [0.3, 0.6]}]
    slices = [
        {
            "sources": [
                {"model": str(models / name), "layer_range": [start, start + 2], "parameters": {"weight": part[name]}}
                for name in part
            ]
        }
        for start, part in zip((0, 2), weights, strict=True)
    ]
    config = {"merge_method": "linear", "slices": slices}
    layers = [(0.2, 0.5), (0.8, 0.5), (1.0, 0.3), (1.0, 0.6)]

    rules = [
        {"match": f"model.layers.{i}.*", "method": "linear", "weight": {"math": math, "code": code}}
        for i, (math, code) in enumerate(layers)
    ]
    rules.append({"match": "model.embed*", "method": "linear", "weight": {"math": 0.2, "code": 0.5}})
    rules.append({"match": "*", "method": "linear", "weight": {"math": 1.0, "code": 0.3}})

    merged, expected = ours(models, rules), of_mergekit(models, config, tmp_path)
    same(merged, expected, rtol=1e-7, atol=1e-8)  # mergekit keeps linear's weights in float32


PER_SOURCE = {"weight": {"math": [0.3, 0.9], "code": 0.6}}
# of mergekit: its shared parameters, what it has for each model, whether it is given a base; and our rule
WHOLE = {
    "task_arithmetic": ({"lambda": [1.2, 0.4]}, PER_SOURCE, True, {"lambda": [1.2, 0.4], **PER_SOURCE}),
    "breadcrumbs": (
        {}, {**PER_SOURCE, "density": {"math": [0.9, 0.3], "code": 0.5}, "gamma": {"math": 0.05, "code": [0.0, 0.2]}}, True,
        {**PER_SOURCE, "density": {"math": [0.9, 0.3], "code": 0.5}, "gamma": {"math": 0.05, "code": [0.0, 0.2]}},
    ),
    "breadcrumbs_ties": (
        {"normalize": True}, {**PER_SOURCE, "density": {"math": 0.7, "code": 0.5}}, True,
        {**PER_SOURCE, "density": {"math": 0.7, "code": 0.5}, "normalize": True},
    ),
    "model_stock": ({"filter_wise": True}, {}, True, {"filter_wise": True}),
    "nuslerp": ({}, PER_SOURCE, True, {**PER_SOURCE, "between": "deltas"}),
    "multislerp": ({}, PER_SOURCE, False, PER_SOURCE),
    "karcher": ({"max_iter": 20, "tol": 1e-9}, {}, False, {"max_iter": 20, "tol": 1e-9}),
    "sce": ({"select_topk": [0.2, 0.9]}, {}, True, {"select_topk": [0.2, 0.9]}),
    "nearswap": ({"t": [0.001, 0.02]}, {}, True, {"t": [0.001, 0.02]}),
    "arcee_fusion": ({}, {}, True, {}),
    "ram": ({"epsilon": 0.01}, {}, True, {"epsilon": 0.01}),
    "ramplus_tl": ({"epsilon": 0.01, "r": [0.1, 1.0]}, {}, True, {"epsilon": 0.01, "r": [0.1, 1.0]}),
}  # fmt: skip


@pytest.mark.parametrize("method", WHOLE)
def test_a_model_by_each_deterministic_method(models, method, tmp_path):
    shared, per_source, has_base, knobs = WHOLE[method]
    names = ["math", "code"][: COUNTS.get(method, (1, 2))[1]]
    entries = [
        {"model": str(models / name), "parameters": {knob: values[name] for knob, values in per_source.items()}} for name in names
    ]
    config = {"merge_method": method, "models": entries, "parameters": shared}
    if has_base:
        config["base_model"] = str(models / "base")
    rule = {"method": method, "sources": names, **knobs}

    merged, expected = ours(models, [*outside(rule), {**rule, "match": "*"}]), of_mergekit(models, config, tmp_path)
    if method == "ramplus_tl":  # mergekit divides shared by own counts in float32
        same(merged, expected, rtol=1e-7, atol=1e-8)
    else:
        same(merged, expected)
