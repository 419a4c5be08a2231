"""Stacks of layers: any layer of any model in any order, renamed, counted in the config, and read back by transformers."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from evomerge.candidate.checkpoint import Checkpoint, TensorInfo
from evomerge.candidate.layers import layer_count, stacked_config
from evomerge.candidate.merge import merge
from evomerge.candidate.plan import plan
from evomerge.candidate.stack import is_embedding, numbered, writes
from evomerge.candidate.stream import Sources, materialize
from evomerge.document import Place
from evomerge.errors import CheckpointError, DocumentError, RecipeError
from evomerge.recipe import Recipe

REST = [{"match": "*", "method": "linear", "sources": ["math", "code"], "weight": 1.0}]


def recipe(family, slices, rules=REST, **rest):
    sources = {name: f"whole-{name}" if name != "code" else "code" for name in ("math", "code")}
    data = {"base": "whole-base", "sources": sources, "slices": slices, "rules": rules, **rest}
    return Recipe.from_data(data, Place("test"), family)


def merged(given):
    return dict(materialize(given, Sources()).weights)


def tensors(given, role):
    model = given.base if role == "base" else given.sources[role]
    checkpoint = Checkpoint.open(model.model)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def test_layers_of_any_model_in_any_order(family):
    given = recipe(
        family, [{"source": "base", "layers": 1}, {"source": "math", "layers": [0, 2]}, {"source": "base", "layers": 1}]
    )

    out, base, math = merged(given), tensors(given, "base"), tensors(given, "math")

    wanted = [(base, 1), (math, 0), (math, 1), (base, 1)]
    for i, (model, layer) in enumerate(wanted):
        for name, tensor in model.items():
            if name.startswith(f"model.layers.{layer}."):
                assert torch.equal(out[name.replace(f"layers.{layer}.", f"layers.{i}.")], tensor), name
    assert sum(name.startswith("model.layers") for name in out) == 2 * sum(name.startswith("model.layers") for name in base)
    # what lies before the layers is the first slice's, what comes after them the last one's
    assert torch.equal(out["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert torch.equal(out["lm_head.weight"], base["lm_head.weight"])


def test_a_stack_of_all_layers_in_order_is_the_model_without_slices(family):
    plain = merged(recipe(family, None))

    stacked = merged(recipe(family, [{"layers": [0, 1]}, {"layers": [1, 2]}]))

    assert plain.keys() == stacked.keys()
    assert all(torch.equal(tensor, stacked[name]) for name, tensor in plain.items())


def test_a_slice_merges_different_layers_by_rules_of_its_own(family):
    rule = {"match": "*", "method": "task_arithmetic", "weight": [0.0, 1.0]}
    slices = [{"layers": {"base": [0, 2], "math": [0, 2]}}, {"layers": {"base": 1, "math": 0}}]
    given = recipe(family, [{**part, "rules": [rule]} for part in slices])

    out, base, math = merged(given), tensors(given, "base"), tensors(given, "math")

    name = "self_attn.q_proj.weight"
    assert torch.equal(out[f"model.layers.0.{name}"], base[f"model.layers.0.{name}"])  # a curve begins with its slice
    assert_close(out[f"model.layers.1.{name}"], math[f"model.layers.1.{name}"])
    assert_close(out[f"model.layers.2.{name}"], math[f"model.layers.0.{name}"])  # a slice of one layer has the curve's end


def test_curves_of_the_recipe_run_over_the_whole_stack(family):
    rule = {"match": "*", "method": "task_arithmetic", "sources": ["math"], "weight": [0.0, 1.0]}
    steps = plan_of(recipe(family, [{"layers": [0, 2]}, {"layers": [0, 2]}, {"layers": 0}], [rule])).steps

    depths = {step.name: step.knobs["weight"]["math"][0] for step in steps if step.name.endswith("q_proj.weight")}

    assert depths == {f"model.layers.{i}.self_attn.q_proj.weight": i / 4 for i in range(5)}


def plan_of(given):
    return Sources().plan(given)


def test_scale_multiplies_what_a_block_adds_to_the_stream(family):
    slices = [{"source": "base", "layers": [0, 2]}, {"source": "math", "layers": 1, "scale": 0.25}]
    given = recipe(family, slices)

    out, math = merged(given), tensors(given, "math")

    for part in ("self_attn.o_proj", "mlp.down_proj"):
        assert torch.equal(out[f"model.layers.2.{part}.weight"], math[f"model.layers.1.{part}.weight"] * 0.25)
    for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm"):
        assert torch.equal(out[f"model.layers.2.{part}.weight"], math[f"model.layers.1.{part}.weight"])


def test_a_layer_scaled_to_nothing_is_a_layer_left_out(family, tmp_path):
    whole = recipe(family, [{"source": "base", "layers": [0, 2]}])
    padded = recipe(family, [{"source": "base", "layers": [0, 2]}, {"source": "math", "layers": 0, "scale": 0}])
    ids = torch.arange(12)[None]

    streams = [model_stream(merge(given, tmp_path / name), ids) for name, given in (("whole", whole), ("padded", padded))]

    assert torch.equal(*streams)


def model_stream(folder, ids):
    """What leaves the last layer, before the norm."""
    model, seen = AutoModelForCausalLM.from_pretrained(folder), []
    model.model.layers[-1].register_forward_hook(lambda *args: seen.append(args[-1]))
    model(ids)
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def test_transformers_reads_a_stack_of_another_depth(family, tmp_path):
    given = recipe(family, [{"source": "base", "layers": [0, 2]}, {"source": "math", "layers": [0, 2]}], dtype="bfloat16")

    model, info = AutoModelForCausalLM.from_pretrained(merge(given, tmp_path / "out"), output_loading_info=True)

    assert model.config.num_hidden_layers == len(model.model.layers) == 4
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.isfinite(model(torch.arange(8)[None]).logits).all()


def test_the_config_lists_layers_as_they_stand_now():
    base = {"num_hidden_layers": 3, "layer_types": ["full", "sliding", "full"], "eos_token_id": [1, 2, 3]}
    math = base | {"layer_types": ["a", "b", "c"]}
    models = {"base": Checkpoint(Path("nowhere"), base, {}, {}), "math": Checkpoint(Path("nowhere"), math, {}, {})}
    slices = [{"source": "base", "layers": [1, 3]}, {"source": "math", "layers": [0, 2]}]
    given = Recipe.from_data({"base": "b", "sources": {"math": "m"}, "slices": slices, "rules": []}, Place("test"))

    config = stacked_config(base, given, models)

    assert config == {"num_hidden_layers": 4, "layer_types": ["sliding", "full", "a", "b"], "eos_token_id": [1, 2, 3]}
    nested = stacked_config({"text_config": base}, given, {"base": Checkpoint(Path("nowhere"), {"text_config": base}, {}, {})})
    assert nested["text_config"]["num_hidden_layers"] == 4
    with pytest.raises(RecipeError, match="the config counts layers by `first_k_dense_replace`"):
        stacked_config({**base, "first_k_dense_replace": 2}, given, models)


@pytest.mark.parametrize(
    ("config", "tower", "changed"),
    [
        ({"num_layers": 3, "is_encoder_decoder": True}, "encoder.block", {"num_layers": 4, "num_decoder_layers": 3}),
        ({"num_layers": 3, "is_encoder_decoder": True}, "decoder.block", {"num_decoder_layers": 4}),
        ({"decoder_layers": 3, "encoder_layers": 3, "is_encoder_decoder": True}, "model.encoder.layers", {"encoder_layers": 4}),
        ({"num_hidden_layers": 3}, "model.decoder.layers", {"num_hidden_layers": 4}),
        ({"depth": 3, "fullatt_block_indexes": [0, 2]}, "visual.blocks", {"depth": 4, "fullatt_block_indexes": [1, 2]}),
    ],
)
def test_the_count_of_the_stacked_tower_changes_and_no_other(config, tower, changed):
    slices = [{"source": "base", "layers": [1, 3]}, {"source": "base", "layers": [0, 2]}]
    given = Recipe.from_data({"base": "b", "sources": {}, "slices": slices, "rules": []}, Place("test"))

    def of(config):
        return stacked_config(config, given, {"base": Checkpoint(Path("nowhere"), config, {}, {})}, tower)

    assert of(config) == config | changed
    towers = {"text_config": {"num_hidden_layers": 3}, "vision_config": config, "vision_feature_layer": -2}
    if tower == "visual.blocks":
        assert of(towers) == towers | {"vision_config": config | changed}
        with pytest.raises(RecipeError, match="counts layers by `vision_feature_layer`"):
            of(towers | {"vision_feature_layer": 1})


def test_what_is_beside_a_stack_is_merged_as_it_lies(family):
    beside = {"match": "*mlp*", "method": "task_arithmetic", "sources": ["math"], "weight": [0.25, 0.75], "stacked": False}
    given = recipe(family, [{"source": "math", "layers": 1}], [beside, *REST])

    out, base, math = merged(given), tensors(given, "base"), tensors(given, "math")

    for name in (name for name in base if ".mlp." in name):
        assert_close(out[name], torch.lerp(base[name], math[name], 0.25 if ".0." in name else 0.75), rtol=1e-5, atol=1e-6)
    name = "self_attn.q_proj.weight"
    assert torch.equal(out[f"model.layers.0.{name}"], math[f"model.layers.1.{name}"])
    assert f"model.layers.1.{name}" not in out


def test_a_rule_that_only_says_what_is_stacked_is_not_said_to_match_nothing(family):
    rules = [{**REST[0], "match": match, "stacked": stacked} for match, stacked in (("*layers*", True), ("*", False))]

    warnings = plan_of(recipe(family, [{"layers": [0, 2], "rules": REST}], rules)).warnings

    assert not [warning for warning in warnings if "first match of no tensor" in warning]
    hidden = plan_of(recipe(family, [{"layers": [0, 2], "rules": REST}])).warnings
    assert [warning for warning in hidden if "first match of no tensor" in warning]


@pytest.mark.parametrize(
    ("slices", "match", "inner", "message"),
    [
        (None, "*mlp*", [], "rules[0].stacked: nothing is stacked without `slices`; leave it out"),
        ([{"layers": 1}], "*", [], "has no numbered layers to stack; leave `slices` out"),
        ([{"layers": 1}], "*mlp*", [{**REST[0], "stacked": False}], "slices[0].rules[0].stacked: a slice is its layers"),
    ],
)
def test_what_cannot_be_beside_a_stack_is_refused(family, slices, match, inner, message):
    slices = slices and [{**slices[0], "rules": inner}]
    with pytest.raises((RecipeError, CheckpointError)) as caught:
        merged(recipe(family, slices, [{**REST[0], "match": match, "stacked": False}, *REST]))

    assert message in str(caught.value)


def test_models_of_different_depth_are_stacked(family, tmp_path):
    deep = merge(recipe(family, [{"source": "base", "layers": [0, 2]}, {"source": "math", "layers": [0, 2]}]), tmp_path / "deep")
    data = {"base": "whole-base", "sources": {"deep": str(deep)}, "rules": [], "slices": [{"source": "deep", "layers": [1, 4]}]}
    given = Recipe.from_data(data, Place("test"), family)

    out, source = merged(given), tensors(given, "deep")

    assert torch.equal(out["model.layers.2.mlp.up_proj.weight"], source["model.layers.3.mlp.up_proj.weight"])
    assert "model.layers.3.mlp.up_proj.weight" not in out


def test_a_layer_that_stands_twice_is_dropped_from_alike(family):
    rule = {"match": "*", "method": "dare_linear", "sources": ["math"], "weight": 1.0, "drop_rate": 0.5}
    out = merged(recipe(family, [{"layers": [0, 2]}, {"layers": [0, 2]}], [rule]))

    for i in (0, 1):
        pair = [out[f"model.layers.{i + shift}.mlp.up_proj.weight"] for shift in (0, 2)]
        assert torch.equal(*pair)


def test_resident_sources_give_the_same_bits_for_stack_after_stack(family):
    sources = Sources(resident=True)
    rule = {"match": "*", "method": "dare_ties", "sources": ["math", "code"], "weight": 1.0, "drop_rate": 0.5}
    for order in ([0, 1], [1, 0, 1], [1], [0, 0]):
        given = recipe(family, [{"layers": i} for i in order], [rule])
        kept = dict(materialize(given, sources).weights)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in merged(given).items())


def test_a_recipe_with_slices_survives_its_own_yaml(family):
    slices = [
        {"source": "math", "layers": [0, 2], "scale": 0.5, "on": True},
        {"layers": {"base": 0, "code": 1}, "rules": [{"match": "*", "method": "ties", "density": [0.2, 0.4]}]},
        {"layers": 1, "on": False},
        {"layers": 1},
    ]
    given = recipe(family, slices)

    again = Recipe.from_data(json.loads(json.dumps(given.to_data())), Place("again"))

    assert again == given
    assert again.key() == given.key()
    assert len(given.slices) == 3  # what is off leaves no trace: the same recipe, the same scores


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([{"source": "base", "layers": [0, 3]}], "slices[0].layers.base: 'base' has no layer 2, its layers are 0 to 1"),
        ([{"source": "bas", "layers": 0}], "slices[0].source: 'bas' is not known; did you mean 'base'?"),
        ([{"layers": {"bse": 0}}], "slices[0].layers: 'bse' is not a model of this recipe; did you mean 'base'?"),
        ([{"layers": [1, 1]}], "no layer lies in [1, 1]; the second number is that after the last layer"),
        ([{"layers": {"base": [0, 2], "math": [0, 1]}}], "slices[0].layers: each model gives as many layers to a slice"),
        ([{"layers": "0-1"}], "expected layers as [first, end], or one number; found text '0-1'"),
        ([{"layers": 0, "on": False}], "slices: no layer is left; let at least one slice be without `on: false`"),
        ([{"source": "math", "layers": 0, "rules": []}], "`source` copies one model, so `rules` have nothing to do"),
        ([{"layers": 0, "layer": 1}], "slices[0]: unknown key 'layer'; did you mean 'layers'?"),
        (
            [{"layers": {"base": 0, "math": 0}}],
            "rules[0]: linear reads 'code' for 'lm_head.weight', and slices[0] takes no layers",
        ),
    ],
)
def test_slices_that_cannot_be_are_refused(family, slices, message):
    with pytest.raises((RecipeError, DocumentError)) as caught:
        plan_of(recipe(family, slices))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def fake(shapes, layers):
    tensors = {name: TensorInfo("F32", shape) for name, shape in shapes.items()}
    return Checkpoint(Path("nowhere"), {"num_hidden_layers": layers}, tensors, {})


def test_layers_that_differ_are_named():
    base = fake({"layers.0.a": (2,), "layers.1.a": (2,), "layers.1.b": (3,)}, 2)
    other = fake({"layers.0.a": (4,), "layers.1.a": (2,)}, 2)
    rules = [{"match": "*", "method": "task_arithmetic", "weight": 1.0}]

    def planned(layers):
        data = {"base": "b", "sources": {"o": "o"}, "rules": rules, "slices": [{"layers": layers}]}
        return plan(Recipe.from_data(data, Place("test")), base, {"o": other})

    with pytest.raises(CheckpointError, match=r"layer 1 of 'base' has 'b', layer 0 of 'o' has not"):
        planned({"base": 1, "o": 0})
    with pytest.raises(CheckpointError, match=r"'layers.0.a' has the shape \[4\] in 'o', 'layers.0.a' \[2\] in 'base'"):
        planned({"base": 0, "o": 0})


def test_a_scale_that_would_do_nothing_is_refused():
    rules = [{"match": "*", "method": "passthrough", "sources": ["base"]}]
    data = {"base": "b", "rules": rules, "slices": [{"layers": 0, "scale": 0.5}]}
    given = Recipe.from_data(data, Place("test"))

    with pytest.raises(RecipeError, match=r"'post_feedforward_layernorm\.weight' normalises what a block adds"):
        plan(given, fake({"layers.0.o_proj.weight": (2,), "layers.0.post_feedforward_layernorm.weight": (2,)}, 1), {})
    with pytest.raises(RecipeError, match="none of the layer's tensors is known to write to the residual stream"):
        plan(given, fake({"layers.0.novel.weight": (2,)}, 1), {})


def test_names_say_where_a_tensor_stands():
    assert numbered("model.layers.3.mlp.experts.7.w1.weight") == ("model.layers", 3)
    assert numbered("transformer.h.0.attn.c_proj.weight") == ("transformer.h", 0)
    assert numbered("lm_head.weight") is None
    assert is_embedding("transformer.wte.weight")
    assert not is_embedding("embed_out.weight")
    assert writes(".attn.c_proj.weight")
    assert not writes(".mlp.up_proj.weight")
    assert layer_count({"text_config": {"num_hidden_layers": 5}}) == layer_count({"n_layer": 5}) == 5
