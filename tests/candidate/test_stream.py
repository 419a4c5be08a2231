"""A recipe's tensors, worked by hand; the same ones resident, streamed and run again."""

import importlib.util
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import kernels
from evomerge.candidate import stream
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.stream import Sources, materialize
from evomerge.document import Place
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import Recipe
from tests.candidate.conftest import Make

RULES = {
    "linear": {"method": "linear", "weight": {"math": [0.2, 0.8], "code": 0.5}},
    "task_arithmetic": {"method": "task_arithmetic", "weight": 0.4},
    "ties": {"method": "ties", "weight": {"math": [0.2, 0.8], "code": 0.5}, "density": 0.4},
    "ties of the paper": {"method": "ties", "variant": "paper", "density": {"math": 0.2, "code": 0.6}},
    "dare_linear": {"method": "dare_linear", "weight": 0.4, "drop_rate": 0.5},
    "dare_ties": {"method": "dare_ties", "weight": 0.4, "drop_rate": {"math": 0.3, "code": [0.1, 0.9]}},
    "slerp": {"method": "slerp", "t": [0.1, 0.9], "sources": ["code"]},
    "della": {"method": "della", "weight": 0.4, "density": 0.5, "epsilon": {"math": [0.0, 0.3], "code": 0.1}},
    "sce": {"method": "sce", "select_topk": [0.3, 0.7]},
    "fedavg": {"method": "fedavg", "weight": {"math": 100, "code": 300}, "clip_norm": 1.0},
    "passthrough": {"method": "passthrough", "sources": ["math"]},
}


def merged(recipe, sources=None) -> dict[str, torch.Tensor]:
    return dict(materialize(recipe, sources or Sources()).weights)


def test_an_average_is_the_average_of_the_files(make, family):
    math, code = (load_file(family / name / "model.safetensors") for name in ("math", "code"))
    found = merged(make(method="linear", weight={"math": 3.0, "code": 1.0}))

    assert list(found) == sorted(math)
    for name, tensor in found.items():
        expected = (math[name].double() * 0.75 + code[name].double() * 0.25).to(torch.bfloat16)
        torch.testing.assert_close(tensor, expected, rtol=2**-8, atol=0)
        assert tensor.dtype == torch.bfloat16


def test_a_curve_moves_from_the_base_to_a_source(make, family):
    base, math = (load_file(family / name / "model.safetensors") for name in ("whole-base", "whole-math"))
    found = merged(make(prefix="whole-", method="task_arithmetic", weight={"math": [0.0, 1.0], "code": 0.0}))

    torch.testing.assert_close(found["model.embed_tokens.weight"], base["model.embed_tokens.weight"], rtol=0, atol=0)
    torch.testing.assert_close(found["lm_head.weight"], math["lm_head.weight"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "ties of the paper", "sce", "fedavg"])
def test_a_rule_with_a_base_of_its_own_merges_as_if_the_recipe_had_that_base(family, name, resident):
    def of(base, sources, rule):
        return Recipe.from_data({"base": base, "sources": sources, "rules": [{"match": "*", **rule}]}, Place("test"), family)

    rule = {"density": 0.4} if name.startswith("ties") else {"weight": 0.7} if name == "task_arithmetic" else {}
    rule |= {"method": name.split()[0], **({"clip_norm": 1.0} if name == "fedavg" else {})}
    rule |= {"variant": "paper"} if name == "ties of the paper" else {}
    swapped = of("math", {"other": "base", "code": "code"}, rule)
    given = of("base", {"math": "math", "code": "code"}, {**rule, "base": "math", "sources": ["base", "code"]})
    usual = of("base", {"math": "math", "code": "code"}, rule)
    sources = Sources(resident=resident)

    first, found, expected = (merged(each, sources) for each in (usual, given, swapped))

    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert not all(torch.equal(tensor, first[name]) for name, tensor in found.items())


def test_true_and_false_change_at_their_layer(make):
    weight = {"math": 0.5, "code": 0.3}
    found, plain, normal = (
        merged(make(method="linear", weight=weight, normalize=given)) for given in ([False, True], False, True)
    )

    for name, tensor in found.items():
        last = ".layers.1." in name or ("embed" not in name and ".layers." not in name)
        assert torch.equal(tensor, (normal if last else plain)[name]), name


def test_rows_merge_halves_of_a_tensor_differently(make, family):
    base, math = (load_file(family / name / "model.safetensors") for name in ("whole-base", "whole-math"))
    weight = {"math": {"rows": [0.0, 1.0]}, "code": 0.0}
    found = merged(make(prefix="whole-", method="task_arithmetic", weight=weight))["model.layers.0.mlp.up_proj.weight"]
    name = "model.layers.0.mlp.up_proj.weight"

    torch.testing.assert_close(found[:48], base[name][:48], rtol=0, atol=0)
    torch.testing.assert_close(found[48:], math[name][48:], rtol=1e-6, atol=1e-7)


def test_ties_of_the_paper_trims_over_the_whole_model(make, family):
    base, math = (load_file(family / name / "model.safetensors") for name in ("whole-base", "whole-math"))
    rule = {"match": "*", "method": "ties", "variant": "paper", "density": 0.25, "sources": ["math"]}
    found = merged(make(prefix="whole-", rules=[rule]))
    delta = torch.cat([(math[name] - base[name]).view(-1) for name in sorted(base)])
    kept = torch.cat([(found[name] != base[name]).view(-1) for name in sorted(base)])
    threshold = delta.abs().sort(descending=True).values[len(delta) // 4]

    assert int(kept.sum()) == len(delta) // 4
    assert kept.equal(delta.abs() > threshold)


@pytest.mark.parametrize("rule", RULES)
def test_resident_and_streamed_merges_are_equal_bit_for_bit(rule, make):
    recipe, resident = make(**RULES[rule]), Sources(resident=True)
    streamed, first, again = merged(recipe), merged(recipe, resident), merged(recipe, resident)

    assert all(tensor.equal(first[name]) and tensor.equal(again[name]) for name, tensor in streamed.items())


def test_what_is_resident_is_not_changed_by_candidates_in_between(make):
    sources = Sources(resident=True)
    before = merged(make(**RULES["ties"]), sources)
    for rule in RULES.values():
        merged(make(**rule, seed=3), sources)

    after = merged(make(**RULES["ties"]), sources)
    assert all(tensor.equal(after[name]) for name, tensor in before.items())


def test_another_seed_drops_others(make):
    sources = Sources(resident=True)
    one, other = (merged(make(**RULES["dare_linear"], seed=seed), sources) for seed in (0, 1))

    assert not one["lm_head.weight"].equal(other["lm_head.weight"])


def test_one_sources_object_serves_recipes_over_other_models(make):
    sources = Sources(resident=True)
    merged(make(**RULES["linear"]), sources)

    tied = merged(make(prefix="tied-", **RULES["linear"]), sources)
    fresh = merged(make(prefix="tied-", **RULES["linear"]))
    assert all(tensor.equal(tied[name]) for name, tensor in fresh.items())


def test_a_recipe_may_set_the_dtype(make):
    found = merged(make(**RULES["linear"], dtype="float32"))

    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(tensor.to(torch.bfloat16).equal(merged(make(**RULES["linear"]))[name]) for name, tensor in list(found.items())[:3])


def test_the_manifest_announces_what_comes(make):
    candidate = materialize(make(**RULES["ties"], dtype="float16"), Sources())

    assert [(n, tuple(t.shape)) for n, t in candidate.weights] == [(n, info.shape) for n, info in candidate.manifest.items()]
    assert {info.dtype for info in candidate.manifest.values()} == {"F16"}


def test_whole_numbers_pass_unchanged(make, tmp_path):
    for value, name in enumerate(("base", "math", "code")):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2,), value / 2), "steps": torch.tensor([value])}, tmp_path / name / "model.safetensors")

    found = merged(make(root=tmp_path, method="linear", weight=1.0, dtype="float64"))
    assert found["w"].tolist() == [0.75, 0.75]
    assert found["steps"].tolist() == [0]


def test_the_key_is_of_the_recipe_and_of_every_file(make: Make, family, tmp_path):
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    here, there = (materialize(make(root=root, **RULES["linear"]), Sources()).key for root in (family, tmp_path))
    assert here == there

    shutil.copy(family / "base/model.safetensors", tmp_path / "math/model.safetensors")
    assert materialize(make(root=tmp_path, **RULES["linear"]), Sources()).key != here
    assert materialize(make(**RULES["task_arithmetic"]), Sources()).key != here


def test_the_texts_to_heal_on_are_in_the_key(make, tmp_path):
    texts = tmp_path / "texts.txt"
    heal = {"tokens": 10, "texts": str(texts), "teachers": {"math": 1.0}}
    with pytest.raises(RecipeError, match=r"heal.texts: .*texts.txt is no file; name the text"):
        materialize(make(**RULES["linear"], heal=heal), Sources())

    keys = set()
    for content in ("a", "b"):
        texts.write_text(content)
        keys.add(materialize(make(**RULES["linear"], heal=heal), Sources()).key)
    assert len(keys) == 2


@pytest.mark.parametrize("side", ["torch", "native"])
@pytest.mark.parametrize(("method", "model"), [("linear", "code"), ("ties", "base"), ("ties of the paper", "math")])
def test_nan_in_a_model_is_found_when_it_is_read(method, model, side, make, family, tmp_path):
    if side == "native" and kernels.functions() is None:
        pytest.skip("no C++ compiler")
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    file = tmp_path / model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file)

    expected = rf"{model}/model.safetensors: 'model.norm.weight' has NaN or infinite values; take a checkpoint"
    with kernels.backend(side), pytest.raises(CheckpointError, match=expected):
        merged(make(root=tmp_path, **RULES[method]))


def test_without_a_hash_no_file_is_read_to_make_the_plan(make, family, tmp_path, monkeypatch):
    recipe = make(**RULES["ties"])
    monkeypatch.setattr(stream, "digest", lambda file: pytest.fail(f"{file} was hashed"))
    monkeypatch.setattr(Checkpoint, "fingerprint", property(lambda model: pytest.fail(f"{model.path} was hashed")))

    candidate = materialize(recipe, Sources(), hashed=False)

    assert candidate.key == recipe.key()


def test_a_resident_model_outlives_its_file(make, family, tmp_path):
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    sources, recipe = Sources(resident=True), make(root=tmp_path, **RULES["linear"])
    key, before = materialize(recipe, sources).key, merged(recipe, sources)
    for file in tmp_path.glob("*/model.safetensors"):
        with file.open("r+b") as stream:
            stream.seek(5000)
            stream.write(b"\1" * 5000)

    after = merged(recipe, sources)
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert materialize(recipe, sources).key == key
    assert not Checkpoint.open(tmp_path / "base").read("lm_head.weight").equal(after["lm_head.weight"])


def test_federated_averaging_clips_the_whole_model(make, family):
    found = merged(make(method="fedavg", clip_norm=0.5, sources=["math"], dtype="float64"))

    base, math = (load_file(family / name / "model.safetensors") for name in ("base", "math"))
    moved = {name: (tensor - base[name].double(), math[name].double() - base[name].double()) for name, tensor in found.items()}
    length = sum(float(delta.square().sum()) for _, delta in moved.values()) ** 0.5
    assert length > 5
    for change, delta in moved.values():
        torch.testing.assert_close(change, delta * 0.5 / length, rtol=1e-4, atol=1e-7)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton")
@pytest.mark.parametrize("batch", [0, 3000, 1 << 28])
@pytest.mark.parametrize("kind", ["plain", "scaled", "columns"])
def test_merged_in_batches_by_a_kernel_it_is_the_same_model(batch, kind, make, family, monkeypatch, poisoned_memory):
    """What no kernel does waits until all that were launched together are there."""
    monkeypatch.setattr(stream, "BATCH", batch)
    recipe = make(**RULES["ties"])
    if kind == "scaled":
        slices = [{"layers": {name: [0, 2] for name in ("base", "math", "code")}, "scale": 0.25}]
        data = {"base": "base", "sources": {"math": "math", "code": "code"}, "slices": slices}
        recipe = Recipe.from_data({**data, "rules": [{"match": "*", **RULES["ties"]}]}, Place("test"), family)
    if kind == "columns":
        numbers = {"match": "*down_proj*", "method": "linear", "weight": {"columns": [0.2, 0.8]}}
        recipe = make(rules=[numbers, {"match": "*", **RULES["ties"]}])
    alone = merged(recipe)

    with kernels.backend("triton"):
        at_once = merged(recipe)

    assert list(at_once) == list(alone)
    assert all(torch.allclose(at_once[name].float(), alone[name].float(), rtol=1e-6, atol=1e-7) for name in alone)
