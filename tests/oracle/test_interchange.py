"""mergekit's own YAML, read by both: gradients, filters, slices and every deterministic method, in float64 to a relative 1e-12.

mergekit takes the first value of a gradient for final norm and head, we the last: there each is compared with what mergekit
makes of the file with every gradient turned into its last value.
"""

import copy
from pathlib import Path

import pytest
import torch
import yaml

from evomerge.candidate.stream import Sources, materialize
from evomerge.document import dump_yaml
from evomerge.mergekit import convert, read_recipe
from tests.candidate.conftest import llama
from tests.oracle.test_whole_models import of_mergekit, same

LAYERS = 4
BEHIND = ("model.norm.weight", "lm_head.weight")
LOOSE = {"ramplus_tl": {"rtol": 1e-7, "atol": 1e-8}}  # mergekit divides shared by own counts in float32
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "math", "code", "deep")):
        model = llama(0, num_hidden_layers=LAYERS if name != "deep" else 6).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * bool(seed) * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        model.save_pretrained(root / name)
    return root


def listed(models, own, **rest):
    entries = [{"model": str(models / name), **({"parameters": each} if each else {})} for name, each in own.items()]
    return {"models": entries, "dtype": "float64", **rest}


def sliced(models, *parts, **rest):
    """Each part: perhaps a base of its own, its parameters or None, and of each model the layers and their parameters."""
    slices = [
        {
            **({"base_model": str(models / part[0])} if isinstance(part[0], str) else {}),
            "sources": [
                {"model": str(models / name), "layer_range": list(layers), **({"parameters": own} if own else {})}
                for name, (layers, own) in part[-1].items()
            ],
            **({"parameters": part[-2]} if isinstance(part[-2], dict) else {}),
        }
        for part in parts
    ]
    return {"slices": slices, "dtype": "float64", **rest}


def at_the_end(data):
    """A file with every gradient turned into its last value."""
    if isinstance(data, dict):
        return {key: at_the_end_of(key, value) for key, value in data.items()}
    return [at_the_end(item) for item in data] if isinstance(data, list) else data


def at_the_end_of(key, value):
    numbers = isinstance(value, list) and value and all(isinstance(item, int | float) for item in value)
    return value[-1] if numbers and key != "layer_range" else at_the_end(value)


def compare(config, folder, **tolerance):
    file = folder / "config.yaml"
    file.write_text(dump_yaml(config))
    recipe, _ = read_recipe(file)
    merged = dict(materialize(recipe, Sources()).weights)
    expected = of_mergekit(None, copy.deepcopy(config), folder / "theirs")
    last = of_mergekit(None, at_the_end(copy.deepcopy(config)), folder / "last")
    same(merged, expected | {name: last[name] for name in BEHIND}, **tolerance)
    return recipe, merged


GRADIENT = {"math": [0.3, 0.9, 0.1], "code": 0.6}


def cases(models):
    base = {"base_model": str(models / "base")}
    weight = {name: {"weight": value} for name, value in GRADIENT.items()}
    filtered = [{"filter": "self_attn", "value": [0.2, 0.9]}, {"filter": "mlp", "value": 0.5}, {"value": 0.7}]
    both = {"math": {}, "code": {}}
    yield "linear", listed(models, {**weight, "base": {"weight": filtered}}, merge_method="linear")
    yield "slerp", listed(
        models, {"base": {}, "math": {}}, merge_method="slerp", **base,
        parameters={"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": [1, 0.5]}, {"value": 0.4}]},
    )  # fmt: skip
    yield (
        "nuslerp",
        listed(models, weight, merge_method="nuslerp", parameters={"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    )
    yield "nuslerp", listed(models, weight, merge_method="nuslerp", **base, parameters={"nuslerp_flatten": False})
    yield "multislerp", listed(models, weight, merge_method="multislerp", parameters={"normalize_weights": False})
    yield "multislerp", listed(models, weight, merge_method="multislerp", **base)
    yield "karcher", listed(models, both, merge_method="karcher", parameters={"max_iter": 20, "tol": 1e-9})
    yield "karcher", listed(models, both, merge_method="karcher", **base)  # the base joins in
    yield "task_arithmetic", listed(models, weight, merge_method="task_arithmetic", **base, parameters={"lambda": [1.2, 0.4]})
    ties = {"math": {"weight": filtered, "density": [0.3, 0.8, 0.5]}, "code": {"density": 0.6}}
    yield "ties", listed(
        models, {**ties, "base": {"weight": 3.0}}, merge_method="ties", **base,
        parameters={"weight": [{"filter": "q_proj", "value": -0.3}, {"value": 0.4}], "normalize": False, "rescale": True},
    )  # fmt: skip
    yield "ties", listed(
        models, ties, merge_method="ties", **base,
        parameters={"weight": 0.5, "normalize": [{"filter": "mlp", "value": True}, {"value": False}], "lambda": 0.7},
    )  # fmt: skip
    by_layer = [
        {"filter": "mlp", "value": [True, False, True, False]},
        {"filter": "q_proj", "value": False},
        {"value": [True, False]},
    ]
    yield (
        "ties",
        listed(
            models, ties, merge_method="ties", **base, parameters={"weight": 0.5, "normalize": by_layer, "rescale": [False, True]}
        ),
    )
    crumbs = {"math": {"weight": 0.5, "density": [0.9, 0.3], "gamma": 0.05}, "code": {"weight": 0.7, "density": 0.5}}
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        yield method, listed(models, crumbs, merge_method=method, **base, parameters={"normalize": True})
    yield "model_stock", listed(models, both, merge_method="model_stock", **base, parameters={"filter_wise": True})
    yield "model_stock", listed(models, both, merge_method="model_stock", **base, parameters={"filter_wise": by_layer})
    vectors = {
        "nuslerp_flatten": by_layer,
        "nuslerp_row_wise": [{"filter": "mlp.up", "value": True}, {"value": [False, True, True]}],
    }
    yield "nuslerp", listed(models, weight, merge_method="nuslerp", parameters=vectors)
    yield (
        "nuslerp",
        listed(models, weight, merge_method="nuslerp", **base, parameters={**vectors, "nuslerp_flatten": [True, False, False]}),
    )
    yield "multislerp", listed(models, weight, merge_method="multislerp", parameters={"normalize_weights": [False, True]})
    turns = [{"filter": "mlp", "value": 1}, {"value": [3, 3]}]
    yield "karcher", listed(models, both, merge_method="karcher", parameters={"max_iter": turns, "tol": 1e-12})
    yield "sce", listed(models, both, merge_method="sce", **base, parameters={"select_topk": [0.2, 0.9]})
    yield "nearswap", listed(models, {"math": {}}, merge_method="nearswap", **base, parameters={"t": [0.001, 0.02]})
    yield "arcee_fusion", listed(models, {"math": {}}, merge_method="arcee_fusion", **base)
    yield "ram", listed(models, both, merge_method="ram", **base, parameters={"epsilon": 0.01})
    yield "ramplus_tl", listed(models, both, merge_method="ramplus_tl", **base, parameters={"epsilon": 0.01, "r": [0.1, 1.0]})
    yield "passthrough", listed(models, {"math": {"scale": [{"filter": "down_proj", "value": 0.5}]}}, merge_method="passthrough")
    yield "modules", {
        "modules": {"default": {"models": listed(models, weight)["models"], "parameters": {"lambda": 0.5}}},
        "merge_method": "task_arithmetic", "dtype": "float64", **base,
    }  # fmt: skip


def slice_cases(models):
    base = {"base_model": str(models / "base")}
    up, down = {"weight": [0.2, 0.8]}, {"weight": [{"filter": "mlp", "value": 0.1}, {"value": [0.3, 0.6, 1.0]}]}
    yield "a stack of two models", sliced(
        models, (None, {"base": ((0, 3), None)}), (None, {"math": ((1, 4), None)}), (None, {"base": ((3, 4), None)}),
        merge_method="passthrough",
    )  # fmt: skip
    nothing = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]
    yield "a scaled stack", sliced(
        models, (None, {"base": ((0, 3), None)}),
        (None, {"base": ((2, 4), {"scale": nothing})}),
        merge_method="passthrough",
    )  # fmt: skip
    yield "different layers in one slice, and models of unlike depth", sliced(
        models, ({"normalize": False}, {"math": ((0, 2), up), "deep": ((3, 5), {"weight": 0.5})}),
        (None, {"code": ((1, 4), down), "math": ((0, 3), {"weight": 1.0})}),
        (None, {"deep": ((5, 6), {"weight": [0.5, 2.0]})}),
        merge_method="linear",
    )  # fmt: skip
    yield "deltas of other layers", sliced(
        # as many models in the first slice as in the last: mergekit counts those of the first for what comes after the layers
        models, (None, {"base": ((0, 2), None), "math": ((0, 2), up), "deep": ((1, 3), {"weight": 0.2})}),
        ({"lambda": [0.5, 1.5]}, {"base": ((1, 4), None), "math": ((0, 3), down), "deep": ((2, 5), {"weight": 0.3})}),
        merge_method="task_arithmetic", **base, parameters={"lambda": 0.9},
    )  # fmt: skip
    yield "ties in slices", sliced(
        models, (None, {"base": ((0, 2), None), "math": ((0, 2), {**up, "density": 0.3}), "code": ((0, 2), up)}),
        (None, {"base": ((2, 4), None), "math": ((2, 4), {"weight": 0.5, "density": [0.2, 0.9]}), "code": ((2, 4), up)}),
        merge_method="ties", **base, parameters={"density": 0.7},
    )  # fmt: skip
    yield "slerp of unlike layers", sliced(
        models, ({"t": [0.1, 0.9]}, {"base": ((0, 2), None), "deep": ((2, 4), None)}),
        ({"t": 0.5}, {"deep": ((0, 1), None), "base": ((3, 4), None)}),
        merge_method="slerp", **base,
    )  # fmt: skip
    both = {"base": ((0, 2), {"weight": 0.3}), "math": ((1, 3), up), "code": ((2, 4), {"weight": 0.4})}
    yield "slices with bases of their own", sliced(
        models, (None, both), ("code", {"density": [0.2, 0.9]}, both), ("math", {"normalize": [True, False]}, both),
        merge_method="ties", **base, parameters={"density": 0.5},
    )  # fmt: skip
    yield "a base for one slice and none for the file", sliced(
        models, ("math", None, both), merge_method="breadcrumbs", parameters={"density": 0.5}
    )  # fmt: skip
    yield "vectors between deltas in one slice, between models in the other", sliced(
        models, ("base", None, both), (None, {name: both[name] for name in ("math", "code")}), merge_method="nuslerp",
    )  # fmt: skip
    yield "linear, for which a base is nothing", sliced(models, ("math", None, both), ("deep", None, both), merge_method="linear")
    yield "true and false in a slice of three layers and in one of one", sliced(
        models, ({"normalize": [False, True]}, {"base": ((0, 3), None), "math": ((0, 3), up), "code": ((0, 3), {"weight": 0.5})}),
        ({"normalize": [False, True]}, {"base": ((3, 4), None), "math": ((3, 4), up), "code": ((3, 4), {"weight": 0.5})}),
        merge_method="task_arithmetic", **base,
    )  # fmt: skip
    yield "a filter by number looks at each model's own names", sliced(
        models,
        (None, {"base": ((1, 3), None), "math": ((2, 4), {"weight": [{"filter": "layers.2", "value": 0.9}, {"value": 0.2}]})}),
        merge_method="task_arithmetic", **base,
        parameters={"lambda": [{"filter": "layers.0", "value": 2.0}, {"value": 1.0}]},
    )  # fmt: skip


NAMES = [f"{i}-{name}" for i, (name, _) in enumerate(cases(Path("models")))]
STACKS = [name for name, _ in slice_cases(Path("models"))]


@pytest.mark.parametrize("case", range(len(NAMES)), ids=NAMES)
def test_a_file_of_mergekit_merges_the_same(models, case, tmp_path):
    name, config = list(cases(models))[case]

    compare(config, tmp_path, **(LOOSE.get(name) or {}) | ({"rtol": 1e-7, "atol": 1e-8} if name == "linear" else {}))


@pytest.mark.parametrize("case", range(len(STACKS)), ids=STACKS)
def test_a_stack_of_mergekit_is_the_same_stack(models, case, tmp_path):
    _, config = list(slice_cases(models))[case]

    recipe, merged = compare(config, tmp_path, **({"rtol": 1e-7, "atol": 1e-8} if config["merge_method"] == "linear" else {}))

    assert recipe.slices
    layers = sum(part.count for part in recipe.slices)
    assert materialize(recipe, Sources()).config["num_hidden_layers"] == layers
    assert sum("q_proj" in name for name in merged) == layers


@pytest.mark.parametrize("case", range(len(NAMES) + len(STACKS)), ids=[*NAMES, *STACKS])
def test_there_and_back_again_is_the_same_file_and_the_same_merge(models, case, tmp_path):
    """mergekit's file in our words and back: mergekit makes the same of both, and a second time it is the same text."""
    _, config = [*cases(models), *slice_cases(models)][case]
    first = tmp_path / "first.yaml"
    first.write_text(dump_yaml(config))
    texts = [first]
    for turn in ("second", "third"):
        ours, theirs = tmp_path / f"{turn}.ours.yaml", tmp_path / f"{turn}.yaml"
        ours.write_text(convert(texts[-1], "evomerge")[0])
        theirs.write_text(convert(ours, "mergekit")[0])
        texts.append(theirs)

    assert texts[1].read_text() == texts[2].read_text()
    expected = of_mergekit(None, config, tmp_path / "before")
    again = of_mergekit(None, yaml.safe_load(texts[1].read_text()), tmp_path / "after")
    same(again, expected)
    kept = dict(materialize(read_recipe(first)[0], Sources()).weights)
    assert all(torch.equal(t, kept[n]) for n, t in materialize(read_recipe(texts[1])[0], Sources()).weights)


@pytest.mark.parametrize("method", RANDOM)
def test_the_random_methods_keep_their_expectation(models, method, tmp_path):
    """Masks are our own: where nothing is dropped the two agree, and everywhere what is kept has mergekit's length."""
    own = {name: {"weight": 0.5, "density": 1.0} for name in ("math", "code")}
    compare(listed(models, own, merge_method=method, base_model=str(models / "base")), tmp_path)
