"""What every tensor becomes is settled, and what does not fit is refused, before a tensor is read."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.merge import describe_plan, dry_run
from evomerge.candidate.stack import Depths
from evomerge.document import Place
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import COUNTS, METHOD_KNOBS, Recipe, dial_of
from evomerge.space import Space
from tests.candidate.conftest import WORDS, llama, write_tokenizer

LINEAR = {"match": "*", "method": "linear", "weight": 0.5}


def knobs(plan, name):
    return next(step for step in plan.steps if step.name == name).knobs


def test_the_first_rule_that_matches_wins(make):
    plan = dry_run(make(rules=[{"match": "*mlp*", "method": "ties", "density": 0.3}, LINEAR]))
    methods = {step.name: step.method for step in plan.steps}

    assert methods["model.layers.0.mlp.up_proj.weight"] == "ties"
    assert methods["model.layers.0.self_attn.q_proj.weight"] == "linear"
    assert list(methods) == sorted(methods)


def test_a_curve_runs_from_the_embedding_to_the_head(make):
    plan = dry_run(make(method="linear", weight={"math": [0.0, 1.0], "code": 2.0}))

    assert knobs(plan, "model.embed_tokens.weight")["weight"] == {"math": (0.0,), "code": (2.0,)}
    assert knobs(plan, "model.layers.0.mlp.up_proj.weight")["weight"]["math"] == (0.0,)
    assert knobs(plan, "model.layers.1.mlp.up_proj.weight")["weight"]["math"] == (1.0,)
    assert knobs(plan, "model.norm.weight")["weight"]["math"] == (1.0,)
    assert knobs(plan, "lm_head.weight")["weight"]["math"] == (1.0,)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("model.layers.0.mlp.experts.7.up_proj.weight", 0.0),
        ("model.layers.2.input_layernorm.weight", 0.5),
        ("model.layers.4.input_layernorm.weight", 1.0),
        ("transformer.h.3.attn.c_attn.weight", 1.0),
        ("visual.blocks.1.weight", 0.5),
        ("0.weight", 0.0),
        ("1.weight", 1.0),
        ("transformer.wte.weight", 0.0),
        ("transformer.ln_f.weight", 1.0),
        ("embed_out.weight", 1.0),
    ],
)
def test_depth_is_read_from_the_name(name, depth):
    names = ["model.layers.4.x", "transformer.h.3.x", "visual.blocks.2.x", "1.weight", name]

    assert Depths(names).of(name) == depth


def test_a_stack_of_one_layer_is_at_the_beginning():
    assert Depths(["layers.0.weight"]).of("layers.0.weight") == 0.0


def test_rows_give_each_group_its_number(make):
    plan = dry_run(make(method="linear", weight={"math": {"rows": [0.0, [0.0, 1.0]]}, "code": 1.0}))

    assert knobs(plan, "model.layers.1.mlp.up_proj.weight")["weight"] == {"math": (0.0, 1.0), "code": (1.0,)}
    assert knobs(plan, "model.norm.weight")["weight"]["math"] == (0.0, 1.0)


def test_the_dtype_is_the_bases_or_the_recipes(make):
    assert {step.info.dtype for step in dry_run(make(**LINEAR)).steps} == {"BF16"}

    plan = dry_run(make(**LINEAR, dtype="float32"))
    assert {step.info.dtype for step in plan.steps} == {"F32"}
    assert plan.config["dtype"] == "float32"


def test_a_tied_head_is_not_merged(make):
    assert "lm_head.weight" not in dry_run(make(prefix="tied-", **LINEAR)).manifest
    assert "lm_head.weight" in dry_run(make(**LINEAR)).manifest


def test_a_tied_head_that_lies_on_disk_all_the_same_is_passed_over(make, family, tmp_path):
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    for name in ("tied-base", "tied-math"):
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)

    assert "lm_head.weight" not in dry_run(make(prefix="tied-", root=tmp_path, **LINEAR)).manifest


def test_the_context_goes_into_the_config(make):
    config = dry_run(make(**LINEAR, context={"rope_type": "yarn", "factor": 2.0})).config

    assert config["max_position_embeddings"] == 128
    assert config["rope_parameters"]["rope_type"] == "yarn"


def test_a_rule_that_takes_nothing_is_reported(make):
    plan = dry_run(make(rules=[LINEAR, {**LINEAR, "match": "*norm*", "weight": 0.1}]))

    assert plan.warnings == ("rules[1]: '*norm*' is the first match of no tensor",)


def test_a_rule_that_could_match_nothing_is_refused(make):
    with pytest.raises(RecipeError, match=r"rules\[0\]: '\*mpl\*' matches no tensor; did you mean 'mlp'\?"):
        dry_run(make(rules=[{**LINEAR, "match": "*mpl*"}, LINEAR]))
    assert dry_run(make(prefix="tied-", rules=[{**LINEAR, "match": "lm_head*"}, LINEAR])).warnings


def test_whole_numbers_are_the_bases(make, tmp_path):
    for name in ("base", "math", "code"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.zeros(2), "steps": torch.tensor([3])}, tmp_path / name / "model.safetensors")
    plan = dry_run(make(root=tmp_path, dtype="float64", **LINEAR))

    assert plan.manifest["steps"].dtype == "I64"
    assert plan.warnings == ("steps: whole numbers (I64), copied from the base",)


RECIPES = {
    "no rule": (
        {"rules": [{**LINEAR, "match": "*mlp*"}]},
        r"none matches 'lm_head.weight'; end the list with .* \(match: \"\*\"\)",
    ),
    "rows": (
        {"method": "linear", "weight": {"rows": [1, 2, 3]}},
        r"rules\[0\].weight.math: 3 groups of rows do not divide the 40 rows",
    ),
    "rows of a density": ({"method": "ties", "density": {"rows": [0.1, 0.2]}}, r"rules\[0\].density.math: takes no rows"),
    "curve of the paper": (
        {"method": "ties", "variant": "paper", "density": {"math": [0.1, 0.2], "code": 0.5}},
        r"rules\[0\].density.math: .* trims over the whole model at once; give one number",
    ),
    "sum of zero": (
        {"method": "linear", "weight": {"math": 1.0, "code": -1.0}},
        r"rules\[0\].weight: add up to 0 at 'lm_head.weight'",
    ),
}


@pytest.mark.parametrize("fault", RECIPES)
def test_a_recipe_that_contradicts_the_model_is_refused(fault, make):
    changes, words = RECIPES[fault]

    with pytest.raises(RecipeError, match=words):
        dry_run(make(**changes))


def test_a_context_needs_a_config(make, tmp_path):
    for name in ("base", "math", "code"):
        save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
        (tmp_path / name).symlink_to(tmp_path / f"{name}.safetensors")

    with pytest.raises(RecipeError, match=r"context: .*base.safetensors has no config.json; leave `context` out"):
        dry_run(make(root=tmp_path, context={"rope_type": "yarn", "factor": 2.0}, **LINEAR))


def reconfigure(**changes):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def replace_with(**shape):
    def change(folder):
        shutil.rmtree(folder)
        llama(1, **shape).to(torch.bfloat16).save_pretrained(folder)

    return change


def drop(folder):
    file = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "norm" not in name}, file)


def cast_norm(folder):
    file = folder / "model.safetensors"
    save_file({n: t.to(torch.int8) if n == "model.norm.weight" else t for n, t in load_file(file).items()}, file)


MISFITS = {
    "architecture": (
        reconfigure(model_type="qwen2"),
        "another architecture: model_type is qwen2 there and llama in the base .*; only fine-tunes of one model",
    ),
    "heads": (reconfigure(num_attention_heads=8), "num_attention_heads is 8 there and 4 in the base"),
    "width": (replace_with(intermediate_size=128), r"has the shape \[64, 128\] there and \[64, 96\] in the base"),
    "fewer layers": (replace_with(num_hidden_layers=1), "has no tensor 'model.layers.1.input_layernorm.weight', the base"),
    "more layers": (
        replace_with(num_hidden_layers=3),
        "has a tensor 'model.layers.2.input_layernorm.weight', the base .* has none",
    ),
    "vocabulary": (
        replace_with(vocab_size=44),
        "has a vocabulary of 44 tokens, the base .* one of 40 .*: take fine-tunes that kept",
    ),
    "tied": (replace_with(tied=True), r"has no tensor 'lm_head.weight', .*: one ties it .*; save both the same way"),
    "lacking": (drop, "has no tensor 'model.layers.0.input_layernorm.weight', the base"),
    "whole numbers": (cast_norm, "'model.norm.weight' is I8 there and BF16 in the base .*; convert one of the two"),
    "tokenizer": (
        lambda folder: write_tokenizer(folder, [*WORDS[:-2], WORDS[-1], WORDS[-2]]),
        "another tokenizer than the base .*: they must not be merged as if they were one family; take fine-tunes",
    ),
    "quantised": (reconfigure(quantization_config={"bits": 4}), "is quantised; name the model it was quantised from"),
}


@pytest.mark.parametrize("fault", MISFITS)
def test_a_source_of_another_family_is_refused(fault, make, family, tmp_path):
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    change, words = MISFITS[fault]
    change(tmp_path / "math")

    with pytest.raises(CheckpointError, match=words) as caught:
        dry_run(make(root=tmp_path, **LINEAR))
    assert f"{tmp_path}/math: source 'math'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_eight_bits_are_too_few_to_merge(make, tmp_path):
    for name in ("base", "math", "code"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / name / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"'w' is F8_E4M3, too coarse to be merged; take the model in BF16"):
        dry_run(make(root=tmp_path, **LINEAR))


def test_a_missing_source_is_named_with_its_place(make, family, tmp_path):
    shutil.copytree(family / "base", tmp_path / "base")

    with pytest.raises(CheckpointError, match=rf"^sources.math: {tmp_path}/math: no such file or directory; correct the path"):
        dry_run(make(root=tmp_path, **LINEAR))


def test_another_rope_base_is_reported(make, family, tmp_path):
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    reconfigure(rope_parameters={"rope_type": "default", "rope_theta": 5e5})(tmp_path / "math")

    assert "rope_parameters differs from the base's, which is kept" in dry_run(make(root=tmp_path, **LINEAR)).warnings[0]


def test_the_plan_is_told_as_a_table(make):
    lines = describe_plan(dry_run(make(rules=[{"match": "*mlp*", "method": "ties", "density": 0.3}, LINEAR]))).splitlines()

    assert lines[0].split() == ["match", "method", "sources", "tensors", "parameters", "bytes"]
    assert lines[2].split() == ["*mlp*", "ties", "math,", "code", "6", "36,864", "73,728"]
    assert lines[-1].split() == ["all", "21", "66,880", "133,760"]


def test_a_dry_run_loads_no_heavy_library(make, tmp_path):
    (tmp_path / "recipe.yaml").write_text(make(**LINEAR, context={"rope_type": "yarn", "factor": 2.0}).to_yaml())
    code = (
        "import sys; from evomerge.candidate.merge import dry_run, describe_plan; from evomerge.recipe import Recipe;"
        "print(len(describe_plan(dry_run(Recipe.read(sys.argv[1])))) > 0,"
        "[m for m in ('torch', 'transformers', 'safetensors', 'numpy', 'scipy', 'optuna') if m in sys.modules])"
    )

    assert subprocess.check_output([sys.executable, "-c", code, tmp_path / "recipe.yaml"], text=True).strip() == "True []"


def test_checkpoints_share_a_vocabulary_by_tokens_not_by_file(family):
    assert Checkpoint.open(family / "base").tokenizer == Checkpoint.open(family / "math").tokenizer


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"method": "sce", "select_topk": {"rows": [0.1, 0.2]}}, "rules[0].select_topk: takes no rows, it is one number"),
        (
            {"method": "della", "weight": 1, "density": 0.5, "epsilon": {"rows": [0.1, 0.2]}},
            "rules[0].epsilon.math: takes no rows",
        ),
        ({"method": "karcher", "weight": {"math": 1, "code": -1}}, "rules[0].weight: add up to 0 at"),
        ({"method": "multislerp", "weight": {"math": 1, "code": -1}}, "rules[0].weight: add up to 0 at"),
    ],
)
def test_a_number_that_does_not_fit_its_method_is_refused(make, rule, message):
    with pytest.raises(RecipeError) as caught:
        dry_run(make(**rule))

    assert message in str(caught.value)


def test_a_window_that_reaches_beyond_0_or_1_is_named(make):
    rule = {"method": "della", "weight": 1.0, "density": {"math": [0.5, 0.9], "code": 1.0}}

    assert dry_run(make(**rule)).warnings == (
        "rules[0].epsilon.math: density ± epsilon leaves [0, 1]; it is narrowed there (mergekit refuses it)",
    )


def opened(method, knob, sources):
    """A knob as a search space writes it: a curve over depth, or a choice."""
    dial = dial_of(method, knob)
    if dial.kind != "number":
        return {"choice": {"flag": [True, False], "count": [1, 7], "word": list(dial.words)}[dial.kind]}
    curve = {"range": [max(dial.low, 0.1), min(dial.high, 0.4)], "points": 2}
    return dict.fromkeys(sources, curve) if dial.per_source else curve


@pytest.mark.parametrize("method", METHOD_KNOBS)
def test_every_knob_of_every_method_is_searched(make, family, method):
    sources = ["math", "code"][: COUNTS.get(method, (1, 2))[1]]
    knobs = {knob: opened(method, knob, sources) for knob in METHOD_KNOBS[method] if (method, knob) != ("ties", "variant")}
    template = make(**LINEAR).to_data() | {"rules": [{"match": "*", "method": method, "sources": sources, **knobs}]}

    space = Space.from_data(template, Place("space"), family)

    recipes = [space.build(corner) for corner in space.corners()]
    assert [Recipe.from_data(recipe.to_data(), Place("again")) for recipe in recipes] == recipes
    ends = [dry_run(recipe) for recipe in recipes]
    assert len(space.parameters) == sum(
        1 if "choice" in knob else 2 if "range" in knob else 2 * len(sources) for knob in knobs.values()
    )
    if space.parameters:
        assert len({repr(step.knobs) for plan in ends for step in plan.steps}) > 1


def test_lines_is_a_lambda_of_two_points(make):
    """LiNeS (Wang et al. 2024): layer l of L adds its delta times α + β (l - 1)/(L - 1)."""
    depths = Depths([f"layers.{i}.w" for i in range(5)])
    curve = make(method="task_arithmetic", weight=1.0, **{"lambda": [0.2, 1.0]}).rules[0].knobs["lambda"]

    assert [curve.at(depths.of(f"layers.{i}.w"))[0] for i in range(5)] == pytest.approx([0.2 + 0.8 * i / 4 for i in range(5)])


def test_every_layer_may_choose_its_own_method(make, family):
    choice = [{"method": "ties", "density": 0.5}, {"method": "karcher", "between": "deltas"}]
    rules = [{"match": f"model.layers.{i}.*", "weight": 0.5, "choice": choice} for i in range(2)]
    space = Space.from_data(make(**LINEAR).to_data() | {"rules": [*rules, LINEAR]}, Place("space"), family)

    plan = dry_run(space.build({"rules[0].choice": 0, "rules[1].choice": 1}))

    methods = {step.name.split(".")[2]: step.method for step in plan.steps if ".layers." in step.name}
    assert methods == {"0": "ties", "1": "karcher"}


def test_a_clip_of_the_whole_model_has_no_depth(make):
    with pytest.raises(RecipeError, match="clip_norm: a model's whole delta is clipped at once"):
        dry_run(make(method="fedavg", clip_norm=[0.1, 0.5]))
