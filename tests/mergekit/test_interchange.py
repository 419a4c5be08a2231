"""mergekit's files in and out: what is read, what is read differently, what is refused, and what it has no words for."""

import json

import pytest
import torch
from safetensors.torch import save_file

from evomerge.document import Place, dump_yaml, parse_yaml
from evomerge.errors import DocumentError, RecipeError
from evomerge.mergekit import convert, expressed, from_genome, from_mergekit, read_recipe, to_mergekit
from evomerge.mergekit.parameters import PARAMETERS, to_filter, to_glob
from evomerge.recipe import METHOD_KNOBS, Cases, Curve, Recipe, Steps
from evomerge.space import Space

TIES = """
merge_method: ties
base_model: {root}/base
models:
  - model: {root}/base
  - model: {root}/math
    parameters:
      density: [0.3, 0.8]
      weight: [{{filter: self_attn, value: [0.2, 0.9]}}, {{value: 0.7}}]
  - model: {root}/code+{root}/lora
    parameters: {{density: 0.5}}
parameters: {{weight: 0.4, int8_mask: yes, lambda: 0.8}}
dtype: bfloat16
"""


@pytest.fixture
def root(tmp_path):
    for name in ("base", "math", "code", "lora"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"num_hidden_layers": 8}))
    return tmp_path


def read(text, root):
    return from_mergekit(parse_yaml(text.format(root=root), "m.yaml"), Place("m.yaml"), root)


def test_a_file_of_models_is_one_rule_for_all_tensors(root):
    recipe, notes = read(TIES, root)

    (rule,) = recipe.rules
    assert (rule.method, rule.sources, rule.match) == ("ties", ("math", "lora"), "*")
    assert rule.knobs["density"] == {"math": Curve(((0.3, 0.8),)), "lora": Curve(((0.5,),))}
    assert rule.knobs["weight"] == {
        "math": Cases((("*self_attn*", Curve(((0.2, 0.9),))), ("*", Curve(((0.7,),))))), "lora": Curve(((0.4,),)),
    }  # fmt: skip
    assert rule.knobs["normalize"] is True
    assert rule.knobs["lambda"] == Curve(((0.8,),))
    assert recipe.sources["lora"].location == f"{root}/code+{root}/lora"
    assert recipe.dtype == "bfloat16"
    assert notes == [
        "dtype: bfloat16 there at every step, here computed in float32 and rounded once",
        "gradients: final norm and lm_head take the last value here, in mergekit the first",
        "int8_mask: changes nothing: it is about the memory that mergekit takes",
    ]


def test_filters_of_all_levels_are_asked_from_the_nearest_on(root):
    text = """
    merge_method: task_arithmetic
    base_model: {root}/base
    slices:
      - sources:
          - {{model: {root}/base, layer_range: [0, 4]}}
          - {{model: {root}/math, layer_range: [2, 6], parameters: {{weight: {{filter: q_proj, value: 1}}}}}}
        parameters: {{weight: [{{filter: mlp, value: 2}}]}}
      - sources: [{{model: {root}/base, layer_range: [4, 8]}}, {{model: {root}/math, layer_range: [0, 4]}}]
    parameters: {{weight: [{{filter: "*", value: 3}}, {{filter: mlp, value: 4}}]}}
    """
    recipe, _ = read(text, root)

    first, second = recipe.slices
    assert first.layers == {"base": (0, 4), "math": (2, 6)}
    cases = first.rules[0].knobs["weight"]["math"].cases
    assert [(match, curve.points[0][0]) for match, curve in cases] == [("*q_proj*", 1), ("*mlp*", 2), ("*", 3)]
    assert second.rules[0].knobs["weight"]["math"] == Curve(((3,),))


def test_slices_of_all_layers_are_a_recipe_without_slices(root):
    text = """
    {{merge_method: slerp, base_model: {root}/base, parameters: {{t: 0.5}}, slices: [{{sources: [
      {{model: {root}/base, layer_range: [0, 8]}}, {{model: {root}/math, layer_range: [0, END]}}]}}]}}
    """

    assert read(text.replace("END", "8"), root)[0].slices == ()
    with pytest.raises(RecipeError, match="each model gives as many layers"):
        read(text.replace("END", "7"), root)


def test_a_density_that_is_kept_is_a_rate_that_is_dropped(root):
    text = TIES.replace("merge_method: ties", "merge_method: dare_ties")
    recipe, notes = read(text, root)

    assert recipe.rules[0].knobs["drop_rate"] == {"math": Curve(((0.7, 0.2),)), "lora": Curve(((0.5,),))}
    assert recipe.rules[0].knobs["normalize"] is False
    assert any("random masks are our own" in note for note in notes)
    again = parse_yaml(to_mergekit(recipe), "again")
    assert again["models"][0]["parameters"]["density"] == [0.3, 0.8]


def test_tokenizer_blocks_are_ours_with_the_names_of_our_sources(root):
    block = """
tokenizer:
  source: {root}/math
  tokens:
    <a>: {{source: {root}/math, force: true}}
    <b>: {{source: {{kind: zero}}}}
    <c>: {{source: {{kind: model_token, model: {root}/base, token: x}}}}
  pad_to_multiple_of: 8
"""
    recipe, _ = read(TIES + block, root)

    data = recipe.to_data()["tokenizer"]
    assert data["source"] == "math"
    assert data["tokens"]["<a>"] == {"source": "math", "force": True}
    assert data["tokens"]["<c>"]["source"] == {"kind": "model_token", "model": "base", "token": "x"}
    written = parse_yaml(to_mergekit(recipe), "w")["tokenizer"]
    assert (written["source"], written["pad_to_multiple_of"]) == (f"{root}/math", 8)
    assert written["tokens"]["<c>"]["source"]["model"] == f"{root}/base"
    assert read(TIES + "tokenizer_source: union", root)[0].tokenizer.source == "union"


def test_a_flag_that_is_the_same_in_every_layer_is_that_flag(root):
    recipe, _ = read(TIES.replace("int8_mask: yes", "normalize: [no, false, off]"), root)

    assert recipe.rules[0].knobs["normalize"] is False


def test_a_flag_that_changes_with_depth_is_steps(root):
    text = TIES.replace("int8_mask: yes", "normalize: [yes, 'False', 1], rescale: [{{filter: mlp, value: [off, on]}}]")
    recipe, notes = read(text, root)

    assert recipe.rules[0].knobs["normalize"] == Steps((True, False, True))
    assert recipe.rules[0].knobs["rescale"] == Cases((("*mlp*", Steps((False, True))), ("*", False)))
    assert any(note.startswith("gradients: final norm and lm_head") for note in notes)
    again = parse_yaml(to_mergekit(recipe), "again")["parameters"]
    assert again["normalize"] == [True, False, True]
    assert again["rescale"] == [{"filter": "mlp", "value": [False, True]}, {"value": False}]


MODULES = """
merge_method: linear
modules:
  text_decoder: {{models: [{{model: {root}/math, parameters: {{weight: 1}}}}, {{model: {root}/code, parameters: {{weight: 2}}}}]}}
  multi_modal_projector: {{models: [{{model: {root}/math}}], parameters: {{weight: 3}}}}
  vision_tower: {{models: [{{model: {root}/code}}]}}
parameters: {{weight: 4}}
"""


@pytest.mark.parametrize(
    ("kind", "projector", "eyes"),
    [("gemma3", "*multi_modal_projector.*", "*vision_tower.*"), ("qwen2_5_vl", "*merger*", "*visual.*")],
)
def test_several_modules_are_rules_for_their_tensors(root, kind, projector, eyes):
    (root / "math" / "config.json").write_text(json.dumps({"model_type": kind}))
    recipe, notes = read(MODULES, root)

    assert [(rule.match, rule.sources) for rule in recipe.rules] == [
        (projector, ("base",)),
        (eyes, ("code",)),
        ("*", ("base", "code")),
    ]
    assert [rule.knobs["weight"]["base"].points[0][0] for rule in recipe.rules if "base" in rule.sources] == [3, 1]
    assert any(note.startswith(f"modules: by the names of tensors: multi_modal_projector is {projector}") for note in notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("  vision_tower:", "  vision_towers:"), "mergekit knows no module 'vision_towers'; did you mean 'vision_tower'?"),
        (("  vision_tower:", "  decoder:"), "no tensor of a module that is not named; add those of one family"),
        (("  text_decoder:", "  vision_model:"), "no tensor of a module that is not named; add those of one family"),
        (("  multi_modal", "  a.multi_modal"), "a module that is not named; add default"),
        (
            ("{{models: [{{model: {root}/code}}]}}", "{{parameters: {{weight: 1}}}}"),
            "vision_tower: a module has either models or slices",
        ),
        (
            (
                "{{models: [{{model: {root}/math}}], parameters: {{weight: 3}}}}\n"
                "  vision_tower: {{models: [{{model: {root}/code}}]}}",
                "{{slices: [{{sources: [{{model: {root}/code, layer_range: [0, 4]}}]}}]}}\n"
                "  vision_tower: {{slices: [{{sources: [{{model: {root}/math, layer_range: [2, 3]}}]}}]}}",
            ),
            "modules: multi_modal_projector and vision_tower are stacks of slices; one tower can be stacked",
        ),
    ],
)
def test_modules_that_would_leave_tensors_out_are_refused(root, change, message):
    with pytest.raises(RecipeError) as caught:
        read(MODULES.replace(*change), root)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", ["text_decoder", "vision_tower"])
def test_a_stack_in_one_of_several_modules_is_slices_beside_rules_for_the_others(root, module):
    (root / "math" / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    file = parse_yaml(MODULES.format(root=root), "m.yaml")
    sources = [{"model": f"{root}/math", "layer_range": [1, 3]}], [{"model": f"{root}/code", "layer_range": [0, 4]}]
    file["modules"][module] = {"slices": [{"sources": each, "parameters": {"weight": 2}} for each in sources]}
    recipe, _ = from_mergekit(file, Place("m.yaml"))

    names = {
        "text_decoder": "language_model.layers.0.x",
        "vision_tower": "vision_tower.layers.0.x",
        "": "multi_modal_projector.x",
    }
    assert [name for name, tensor in names.items() if recipe.stacks(tensor)] == [module]
    assert [part.layers for part in recipe.slices] == [{"base": (1, 3)}, {"code": (0, 4)}]
    assert Recipe.from_data(recipe.to_data(), Place("again")) == recipe
    written = parse_yaml(to_mergekit(recipe), "again")
    assert from_mergekit(written, Place("again"))[0] == recipe


def test_slices_of_all_layers_of_their_tower_are_no_stack(root):
    (root / "math" / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": {"num_hidden_layers": 5}}))
    names = [f"{tower}.layers.{i}.x" for tower, n in (("language_model", 5), ("vision_tower", 9)) for i in range(n)]
    save_file({name: torch.zeros(1) for name in names}, root / "math" / "model.safetensors")
    file = parse_yaml(MODULES.format(root=root), "m.yaml")
    for module, last in (("text_decoder", 5), ("vision_tower", 9)):
        file["modules"][module] = {"slices": [{"sources": [{"model": f"{root}/math", "layer_range": [0, last]}]}]}

    assert from_mergekit(file, Place("m.yaml"))[0].slices == ()
    file["modules"]["text_decoder"]["slices"][0]["sources"][0]["layer_range"] = [0, 4]
    assert [part.layers for part in from_mergekit(file, Place("m.yaml"))[0].slices] == [{"base": (0, 4)}]


def test_a_base_of_a_slice_is_the_base_of_its_rule(root):
    part = "{{model: {root}/MODEL, layer_range: [0, 4]}}"
    sources = ", ".join(part.replace("MODEL", name) for name in ("base", "math", "code"))
    text = f"""
    merge_method: task_arithmetic
    base_model: {{root}}/base
    slices: [{{{{sources: [{sources}]}}}}, {{{{base_model: {{root}}/code, sources: [{sources}]}}}}]
    parameters: {{{{weight: 0.5}}}}
    """
    recipe, _ = read(text, root)

    first, second = (part.rules[0] for part in recipe.slices)
    assert (first.base, first.sources) == ("base", ("math", "code"))
    assert (second.base, second.sources) == ("code", ("base", "math"))
    written = parse_yaml(to_mergekit(recipe), "w")
    assert [part.get("base_model") for part in written["slices"]] == [None, f"{root}/code"]
    with pytest.raises(RecipeError, match="base_model: it is none of the slice's sources"):
        read(text.replace("base_model: {root}/code", "base_model: {root}/lora"), root)


@pytest.mark.parametrize(
    "rest", ["", "chat_template: auto", 'chat_template: "{{% for m in messages %}}{{{{ m }}}}{{% endfor %}}"']
)
def test_there_and_back_the_text_stays_the_same(root, rest):
    recipe, _ = read(TIES + rest, root)

    once = to_mergekit(recipe)
    again, _ = from_mergekit(parse_yaml(once, "once"), Place("once"), root)

    assert to_mergekit(again) == once
    assert again.key() == recipe.key()


def test_every_parameter_has_a_knob_of_its_method():
    for method, parameters in PARAMETERS.items():
        for name, parameter in parameters.items():
            assert parameter.idle or parameter.knob in METHOD_KNOBS[method], (method, name)
    assert len(PARAMETERS) == 20


@pytest.mark.parametrize("text", ["self_attn", "layers.1.", "a[0]*?", "]"])
def test_filters_are_patterns_for_parts_of_names(text):
    assert to_filter(to_glob(text)) == (text, True)
    assert to_filter("*attn*.weight") is None
    assert to_filter("lm_head*") == ("lm_head", False)
    assert to_filter("*") == (None, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lambda: 0.8", "lamda: 0.8"), "ties takes no 'lamda', mergekit drops it in silence; did you mean 'lambda'?"),
        (("lambda: 0.8", "t: 0.8"), "ties takes no 't', mergekit drops it in silence; slerp, nearswap take it"),
        (("dtype: bfloat16", "normalize: true"), "unknown key 'normalize'"),
        (("dtype: bfloat16", "dtype: float8_e4m3fn"), "dtype: 'float8_e4m3fn' cannot be written"),
        (("merge_method: ties", "merge_method: tie"), "'tie' is not known; did you mean 'ties'?"),
        (("density: 0.5", "density: 1.5"), "density.lora: 1.5 is outside [0, 1]"),
        (("density: 0.5", "density: much"), "density: expected a number, found text 'much'"),
        (("base_model: {root}/base", ""), "ties adds to a base; name it as base_model"),
        (("models:\n", "slices: [1]\nmodels:\n"), "exactly one of models, slices and modules says what is merged"),
        (("{root}/math", "{root}/maths/x"), "is no directory here, and no id of the hub"),
        (("filter: self_attn", "filters: self_attn"), "unknown key 'filters'; did you mean 'filter'?"),
        (("{root}/code+{root}/lora", "{root}/math"), "stands twice in one slice"),
        (("int8_mask: yes", "normalize: maybe"), "normalize: expected true or false, found text 'maybe'"),
        (("weight: 0.4, ", ""), "ties needs 'weight' for every model but the base"),
        (("dtype: bfloat16", "chat_template: chatml"), "chat_template: 'chatml' is a file of mergekit's own; write the template"),
        (("dtype: bfloat16", "chat_template: nice"), "chat_template: 'nice' is no template; write its Jinja, or auto"),
        (("value: 0.7", "value: []"), "weight[1].value: an empty list"),
        (("int8_mask: yes", "normalize: [yes, 3]"), "normalize[1]: expected true or false, found"),
    ],
)
def test_what_mergekit_would_drop_or_break_on_is_refused_in_one_line(root, change, message):
    with pytest.raises((RecipeError, DocumentError)) as caught:
        read(TIES.replace(*change), root)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def recipe(**change):
    rule = {"match": "*", "method": "ties", "density": 0.5}
    data = {"base": "b", "sources": {"m": "m", "c": "c"}, "rules": [rule], "dtype": "bfloat16", **change}
    return Recipe.from_data(data, Place("r"))


def test_rules_of_one_method_become_filters():
    rules = [
        {"match": "*attn*", "method": "ties", "sources": ["m"], "density": 0.2, "weight": 0.5},
        {"match": "*", "method": "ties", "density": [0.3, 0.7]},
    ]
    data = parse_yaml(to_mergekit(recipe(rules=rules)), "w")

    of = {each["model"]: each["parameters"] for each in data["models"]}
    assert of["m"]["density"] == [{"filter": "attn", "value": 0.2}, {"value": [0.3, 0.7]}]
    assert of["c"]["weight"] == [{"filter": "attn", "value": 0.0}, {"value": 1.0}]  # a source left out weighs nothing
    assert (data["dtype"], data["out_dtype"]) == ("float32", "bfloat16")  # computed as here, rounded once


def test_curves_over_a_whole_stack_become_gradients_of_its_slices():
    rule = {"match": "*", "method": "task_arithmetic", "sources": ["m"], "weight": [0.0, 1.0]}
    slices = [{"layers": [0, 2]}, {"layers": {"base": [1, 4], "m": [0, 3]}}]
    data = parse_yaml(to_mergekit(recipe(rules=[rule], slices=slices)), "w")

    gradients = [
        source["parameters"]["weight"] for part in data["slices"] for source in part["sources"] if source["model"] == "m"
    ]
    assert gradients == [[0.0, 0.25], [0.5, 0.75, 1.0]]
    assert [source["layer_range"] for source in data["slices"][1]["sources"]] == [[0, 3], [1, 4]]


@pytest.mark.parametrize("count", [3, 4, 50])  # 1 / 49 * 49 is less than 1
def test_steps_over_a_whole_stack_keep_their_layers_in_slices(count):
    """mergekit takes value int(t * (values - 1)) at layer t = i / (layers - 1)."""
    rule = {"match": "*", "method": "model_stock", "filter_wise": [False, True, False, True, True]}
    slices = [{"layers": [0, count]}, {"layers": [0, 1]}, {"layers": [0, count]}]
    given = recipe(rules=[rule], slices=slices)
    steps = given.rules[0].knobs["filter_wise"]

    written = parse_yaml(to_mergekit(given), "w")["slices"]
    of_slice = [part.get("parameters", {}).get("filter_wise", False) for part in written]

    def theirs(values, i, layers):
        t = i / (layers - 1) if layers > 1 else 1
        return values[int(t * (len(values) - 1))] if isinstance(values, list) else values

    found = [
        theirs(values, i, part["layers"][1])
        for values, part in zip(of_slice, slices, strict=True)
        for i in range(part["layers"][1])
    ]
    assert found == [steps.at(layer / (2 * count)) for layer in range(2 * count + 1)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"context": {"rope_type": "yarn", "factor": 2}}, "`context`"),
        ({"rules": [{"match": "*", "method": "tsvm"}]}, "method tsvm"),
        ({"rules": [{"match": "*", "method": "ties", "density": 0.2, "variant": "paper"}]}, "ties with variant: paper"),
        ({"rules": [{"match": "*", "method": "model_stock", "clip": True}]}, "model_stock with clip: true"),
        ({"rules": [{"match": "*", "method": "ties", "density": 0.5, "weight": {"rows": [1, 2]}}]}, "weight by groups of rows"),
        ({"rules": [{"match": "*", "method": "linear", "weight": {"columns": [1, 2]}}]}, "weight by groups of columns"),
        ({"rules": [{"match": "*a*b*", "method": "sce"}, {"match": "*", "method": "sce"}]}, "the pattern '*a*b*'"),
        ({"rules": [{"match": "*a*", "method": "sce"}, {"match": "*", "method": "ram"}]}, "rules of several methods (sce, ram)"),
        ({"slices": [{"layers": [0, 2], "scale": 0.5}]}, "slices[0].scale"),
        ({"rules": [{"match": "*", "method": "ties", "density": 0.5, "base": "m"}]}, "a base of a rule's own"),
        (
            {
                "rules": [
                    {"match": "*", "method": "ties", "density": 0.5, "normalize": [[{"match": "*a*", "value": True}], False]}
                ]
            },
            "normalize by depth or name within steps or cases",
        ),
        ({"rules": [{"match": "*", "method": "karcher", "weight": {"m": 1, "c": 2}}]}, "karcher with unequal weights"),
    ],
)
def test_what_mergekit_has_no_words_for_is_named(change, reason):
    text, reasons = expressed(recipe(**change))

    assert text == ""
    assert any(reason in each for each in reasons)
    with pytest.raises(RecipeError, match="mergekit has no words for this recipe"):
        to_mergekit(recipe(**change))


GENOME = """
genome:
  models: [{root}/math, {root}/code]
  merge_method: dare_ties
  base_model: {root}/base
  layer_granularity: 4
  filters: [self_attn]
tasks:
  - {{name: spartqa_train, weight: 2.0, metric: "acc,none"}}
  - other
limit: 100
num_fewshot: 3
"""


def test_a_genome_becomes_a_space_with_numbers_for_each_group_of_layers(root):
    data, notes = from_genome(parse_yaml(GENOME.format(root=root), "g"), Place("g"), root)
    space = Space.from_data(data["recipe"], Place("g"))

    assert len(space.parameters) == 2 * 2 * 2 * 2  # groups, models, filters and the rest, weight and drop rate
    start = space.build(space.start())
    assert [part.layers["math"] for part in start.slices] == [(0, 4), (4, 8)]
    rule = start.slices[1].rules[0]
    assert rule.knobs["weight"]["code"] == Cases((("*self_attn*", Curve(((0.5,),))), ("*", Curve(((0.5,),)))))
    assert rule.knobs["normalize"] is True
    assert data["suite"] == {"tasks": {"spartqa_train": 2.0, "other": 1.0}, "aggregate": "mean", "rungs": [20, 80, 200]}
    assert data["scoring"]["lm_eval"]["num_fewshot"] == 3
    assert any(note.startswith("weights:") for note in notes)


def test_a_smooth_genome_is_a_curve(root):
    text = GENOME.replace("filters: [self_attn]", "smooth: true").replace("dare_ties", "task_arithmetic")
    data, _ = from_genome(parse_yaml(text.format(root=root), "g"), Place("g"), root)

    assert data["recipe"]["rules"][0]["weight"]["math"] == {"range": [0.0, 1.0], "start": 0.5, "points": 2}
    assert data["recipe"]["rules"][0]["normalize"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("layer_granularity: 4", "layer_granularity: 3"), "3 does not divide the 8 layers"),
        (("dare_ties", "slerp"), "slerp takes two models, no filters"),
        (("layer_granularity", "granularity"), "unknown key 'granularity'; did you mean 'layer_granularity'?"),
        (("dare_ties", "sce"), "'sce' is not known"),
    ],
)
def test_a_genome_that_cannot_be_is_refused(root, change, message):
    with pytest.raises((RecipeError, DocumentError)) as caught:
        from_genome(parse_yaml(GENOME.replace(*change).format(root=root), "g"), Place("g"), root)

    assert message in str(caught.value)


def test_files_of_both_kinds_are_told_apart(root):
    ours, theirs, genome = root / "o.yaml", root / "t.yaml", root / "g.yaml"
    ours.write_text(dump_yaml({"recipe": recipe().to_data()}))
    theirs.write_text(TIES.format(root=root))
    genome.write_text(GENOME.format(root=root))

    assert read_recipe(ours)[0].rules == recipe().rules
    assert read_recipe(theirs)[0].rules[0].sources == ("math", "lora")
    with pytest.raises(RecipeError, match="is a genome of mergekit-evolve"):
        read_recipe(genome)
    assert "spartqa_train" in convert(genome, "evomerge")[0]
    assert convert(theirs, "mergekit")[0].count("merge_method: ties") == 1
