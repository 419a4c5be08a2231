"""Recipes: the same data gives the same object, the same bytes and the same key; contradictions are refused at the door."""

import pytest

from evomerge.document import Place, parse_yaml
from evomerge.errors import DocumentError, RecipeError
from evomerge.recipe import DIALS, METHOD_KNOBS, Cases, Curve, Recipe, Steps, locate

TEXT = """
base: models/base
sources: {math: models/math, code: models/code}
rules:
  - {match: "*attn*", method: dare_ties, weight: {math: [0.1, 0.9], code: 0.5}, drop_rate: 0.3}
  - {match: "*down_proj*", method: linear, weight: {math: {columns: [[0.1, 0.9], 0.5]}, code: 0.5}}
  - {match: "*mlp*", method: slerp, sources: [math], t: {rows: [0.2, [0.4, 0.6]]}}
  - {match: "*", method: linear, weight: {base: 1, math: 0.5, code: 0.5}}
context: {rope_type: yarn, factor: 2}
heal: {tokens: 1e4, texts: texts.jsonl, teachers: {math: 1, code: 0.5}}
seed: 7
"""


def recipe(text=TEXT, root=None):
    return Recipe.from_data(parse_yaml(text, "x.yaml"), Place("x.yaml", "recipe"), root)


def with_rule(rule):
    return f"{{base: b, sources: {{math: m, code: c}}, rules: [{rule}]}}"


def test_a_recipe_survives_being_written_and_read():
    again = Recipe.from_data(parse_yaml(recipe().to_yaml(), "y.yaml")["recipe"], Place("y.yaml"))

    assert again == recipe()
    assert again.to_yaml() == recipe().to_yaml()


def test_the_key_does_not_depend_on_where_the_models_lie(tmp_path):
    (tmp_path / "models/math").mkdir(parents=True)

    assert recipe(root=tmp_path).key() == recipe().key()
    assert recipe(root=tmp_path).sources["math"].model == str(tmp_path / "models/math")


def test_what_is_no_path_and_has_the_form_of_a_hub_id_is_one(tmp_path):
    assert recipe(root=tmp_path).sources["math"].model == "models/math"
    assert recipe(TEXT.replace("models/math", "./models/math"), tmp_path).sources["math"].model == str(tmp_path / "models/math")


def test_a_source_may_have_an_adapter(tmp_path):
    text = TEXT.replace("code: models/code", "code: {model: ./base, adapter: ./lora}")

    again = Recipe.from_data(recipe(text, tmp_path).to_data(), Place("y.yaml"))

    assert again == recipe(text, tmp_path)
    assert (again.sources["code"].model, again.sources["code"].adapter) == (f"{tmp_path}/base", f"{tmp_path}/lora")
    assert again.sources["code"].location == f"{tmp_path}/base+{tmp_path}/lora"


@pytest.mark.parametrize(
    "change", [("0.9", "0.90001"), ("seed: 7", "seed: 8"), ("0.3", "0.4"), ("factor: 2", "factor: 3"), ("1e4", "2e4")]
)
def test_the_key_changes_with_everything_that_changes_the_model(change):
    assert recipe(TEXT.replace(*change)).key() != recipe().key()


def test_the_key_changes_with_the_content_of_a_source():
    assert recipe().key({"math": "a"}) != recipe().key({"math": "b"})


def test_defaults_are_written_out_in_every_rule():
    rule = recipe(with_rule("{match: '*', method: ties, density: 0.2}")).rules[0]

    assert rule.knobs == {
        "weight": {"math": Curve(((1.0,),)), "code": Curve(((1.0,),))},
        "density": {"math": Curve(((0.2,),)), "code": Curve(((0.2,),))},
        "lambda": Curve(((1.0,),)),
        "normalize": True,
        "rescale": False,
        "variant": "mergekit",
    }


@pytest.mark.parametrize(
    ("points", "depth", "value"),
    [((1.0, 3.0), 0.0, 1.0), ((1.0, 3.0), 0.25, 1.5), ((1.0, 3.0), 1.0, 3.0), ((0.0, 1.0, 0.0), 0.5, 1.0), ((2.0,), 0.7, 2.0)],
)
def test_a_curve_is_linear_between_its_control_points(points, depth, value):
    assert Curve((points,)).at(depth) == (value,)


def test_groups_are_of_rows_or_of_columns_and_one_group_is_the_whole():
    def read(value):
        return recipe(with_rule(f"{{match: '*', method: linear, weight: {value}}}")).rules[0].knobs["weight"]["math"]

    assert read("{rows: [0.1, 0.9]}") == Curve(((0.1,), (0.9,)))
    assert read("{columns: [0.1, 0.9]}") == Curve(((0.1,), (0.9,)), "columns")
    assert read("{columns: [0.1]}") == read("{rows: [0.1]}") == read("0.1")


def test_a_curve_with_rows_has_one_number_for_each_group():
    assert Curve(((0.2,), (0.4, 0.6))).at(0.5) == (0.2, 0.5)


@pytest.mark.parametrize(("depth", "value"), [(0.0, True), (0.49, True), (0.5, False), (0.99, False), (1.0, True)])
def test_steps_change_where_a_value_begins_and_the_last_is_that_of_the_end(depth, value):
    assert Steps((True, False, True)).at(depth) is value


def test_what_is_no_number_varies_by_depth_and_name_and_is_written_as_it_was_read():
    rule = "{match: '*', method: nuslerp, weight: 1, along: [tensor, [{match: '*mlp*', value: [rows, columns]}, {value: rows}]]}"
    given = recipe(with_rule(rule))

    inner = Cases((("*mlp*", Steps(("rows", "columns"))), ("*", "rows")))
    assert given.rules[0].knobs["along"] == Steps(("tensor", inner))
    assert Recipe.from_data(given.to_data(), Place("x")) == given


def test_a_rule_may_take_its_deltas_from_another_model():
    given = recipe(with_rule("{match: '*', method: task_arithmetic, base: math, weight: {base: 1, code: 0.5}}"))

    assert (given.rules[0].base, given.rules[0].sources) == ("math", ("base", "code"))
    assert Recipe.from_data(given.to_data(), Place("x")) == given
    assert recipe(with_rule("{match: '*', method: ram, base: code}")).rules[0].sources == ("math",)


def test_the_base_is_a_source_where_a_weight_names_it():
    assert recipe().rules[3].sources == ("base", "math", "code")


def test_every_knob_of_every_method_has_a_dial():
    assert {knob for knobs in METHOD_KNOBS.values() for knob in knobs} == set(DIALS)


def test_the_zoo_is_found_in_the_package():
    assert locate("zoo:models/base").parts[-4:] == ("evomerge", "zoo", "models", "base")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{match: '*', method: tie}", "recipe.rules[0].method: 'tie' is not known; did you mean 'ties'?"),
        ("{match: '*', method: ties, drop_rate: 0.5}", "ties takes 'density', not 'drop_rate': density is the share kept"),
        ("{match: '*', method: dare_ties, weight: 1, density: 0.5}", "dare_ties takes 'drop_rate', not 'density'"),
        ("{match: '*', method: ties}", "recipe.rules[0]: ties needs 'density': a number, or one for each source"),
        ("{match: '*', method: slerp, t: 0.5}", "slerp takes exactly one source, here it has 2"),
        ("{match: '*', method: slerp, t: 0.5, sources: [base]}", "'base' is not a source of slerp here"),
        ("{match: '*', method: nuslerp, weight: 1, sources: [math]}", "nuslerp takes exactly two sources, here it has 1"),
        (
            "{match: '*', method: nuslerp, weight: {base: 1, math: 1, code: 1}}",
            "nuslerp takes exactly two sources, here it has 3",
        ),
        (
            "{match: '*', method: model_stock, sources: [code]}",
            "takes at least two sources, here it has 1: add `sources: [math, code]`",
        ),
        ("{match: '*', method: model_stock, weight: 1}", "recipe.rules[0]: model_stock takes no 'weight'"),
        ("{match: '*', method: della, weight: 1, drop_rate: 0.5}", "della takes 'density', not 'drop_rate'"),
        (
            "{match: '*', method: della, weight: 1, density: 0.5, epsilon: 0.7}",
            "recipe.rules[0].epsilon: 0.7 is outside [0, 0.5]",
        ),
        (
            "{match: '*', method: della, weight: 1, density: 0.5, epsilon: {mat: 0.1}}",
            "'mat' is not a source of this rule; did you",
        ),
        ("{match: '*', method: breadcrumbs, weight: 1, density: 0.5, gama: 0.1}", "unknown key 'gama'; did you mean 'gamma'?"),
        ("{match: '*', method: ram, epsilon: {math: 0.1, code: 0.1}}", "recipe.rules[0].epsilon: unknown key 'math'"),
        ("{match: '*', method: karcher, max_iter: 2.5}", "recipe.rules[0].max_iter: expected a whole number"),
        ("{match: '*', method: karcher, max_iter: 0}", "recipe.rules[0].max_iter: 0 is outside [1, inf]"),
        (
            "{match: '*', method: nuslerp, weight: 1, along: row}",
            "recipe.rules[0].along: 'row' is not known; did you mean 'rows'?",
        ),
        ("{match: '*', method: karcher, between: deltas, weight: {base: 1, math: 1, code: 1}}", "there is nothing of the base's"),
        ("{match: '*', method: linear, weight: {math: 1}}", "recipe.rules[0].weight: nothing for code"),
        ("{match: '*', method: linear, weight: {math: 1, cod: 1}}", "'cod' is not a source of this rule; did you mean 'code'?"),
        ("{match: '*', method: linear, weight: []}", "recipe.rules[0].weight: an empty list"),
        ("{match: '*', method: ties, density: 1.2}", "recipe.rules[0].density: 1.2 is outside [0, 1]"),
        ("{match: '*', method: linear, weight: 1, sources: [math, math]}", "a source stands twice"),
        ("{method: linear, weight: 1}", "recipe.rules[0]: 'match' is missing"),
        ("{match: '*', method: linear, weight: 1, base: math}", "recipe.rules[0].base: linear is between whole models here"),
        ("{match: '*', method: karcher, base: math}", "recipe.rules[0].base: karcher is between whole models here"),
        ("{match: '*', method: ram, base: maths}", "recipe.rules[0].base: 'maths' is not known; did you mean 'math'?"),
        ("{match: '*', method: ram, base: math, sources: [math]}", "recipe.rules[0].sources: 'math' is not a source of ram here"),
        ("{match: '*', method: linear, weight: 1, normalize: [true, 1]}", "recipe.rules[0].normalize[1].value: expected true or"),
        ("{match: '*', method: linear, weight: 1, normalize: []}", "recipe.rules[0].normalize: expected true or false"),
        ("{match: '*', method: ties, density: 1, variant: [paper]}", "recipe.rules[0].variant: expected text"),
        ("{match: '*', method: linear, wieght: 1}", "unknown key 'wieght'; did you mean 'weight'?"),
        ("{match: '*', method: linear, weight: '1'}", "recipe.rules[0].weight: '1' is text, a number is expected"),
        ("{match: '*', method: linear, weight: 1, normalize: 1}", "recipe.rules[0].normalize: expected true or false"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(rule, message):
    with pytest.raises((RecipeError, DocumentError)) as caught:
        recipe(with_rule(rule))

    assert message in str(caught.value)
    assert str(caught.value).startswith("x.yaml: recipe")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("math: models/math", "base: models/math"), "'base' is the name of the base itself"),
        (("sources: {math: models/math, code: models/code}", "sources: {}"), "no source; name at least one model"),
        (("teachers: {math: 1, code: 0.5}", "teachers: {math: 0}"), "no teacher has a share above 0"),
        (("teachers: {math: 1,", "teachers: {maths: 1,"), "'maths' is not a model of this recipe; did you mean 'math'?"),
        (("rope_type: yarn, factor: 2", "rope_type: yarn, factor: 0.5"), "recipe.context.factor: 0.5 is outside [1, 1024]"),
        (("rope_type: yarn, factor: 2", "rope_type: ntk, factor: 2, beta_fast: 9"), "belong to rope_type yarn"),
        (("factor: 2", "factor: 2, beta_fast: 1, beta_slow: 2"), "beta_fast must be greater than beta_slow"),
        (("seed: 7", "sede: 7"), "unknown key 'sede'; did you mean 'seed'?"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(change, message):
    with pytest.raises((RecipeError, DocumentError)) as caught:
        recipe(TEXT.replace(*change))

    assert message in str(caught.value)
