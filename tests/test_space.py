"""Spaces: every number that is open has a name, and the same values give the same recipe, bit for bit."""

import json
import random

import optuna
import pytest

from evomerge.document import Place, parse_yaml
from evomerge.errors import DocumentError, RecipeError
from evomerge.recipe import Curve
from evomerge.space import Space, suggest

TEXT = """
base: b
sources: {math: m, code: c}
rules:
  - match: "*attn*"
    weight: {math: {range: [0.0, 1.2], points: 3}, code: {range: [0.0, 1.2], rows: 2, points: 2, start: 0.3}}
    choice:
      - {method: task_arithmetic}
      - {method: dare_ties, drop_rate: {math: {range: [0.0, 0.9]}, code: 0.5}}
  - {match: "*", method: linear, weight: {math: {range: [0.1, 1.0]}, code: 0.5}, normalize: {choice: [true, false]}}
context: {rope_type: yarn, factor: {range: [1.0, 4.0], log: true}}
heal: {choice: [null, {tokens: 1e4, texts: t.jsonl, teachers: {math: {range: [0.1, 1]}, code: 1}}]}
"""


def space(text=TEXT):
    return Space.from_data(parse_yaml(text, "x.yaml"), Place("x.yaml", "recipe"))


def values(space, seed):
    draw = random.Random(seed)
    return {p.name: draw.randrange(p.options) if p.options else draw.uniform(p.low, p.high) for p in space.parameters}


def test_parameters_are_named_by_their_path():
    assert [parameter.name for parameter in space().parameters] == [
        "rules[0].choice",
        "rules[0].weight.math@0",
        "rules[0].weight.math@1",
        "rules[0].weight.math@2",
        "rules[0].weight.code#0@0",
        "rules[0].weight.code#0@1",
        "rules[0].weight.code#1@0",
        "rules[0].weight.code#1@1",
        "rules[0].choice[1].drop_rate.math",
        "rules[1].weight.math",
        "rules[1].normalize.choice",
        "context.factor",
        "heal.choice",
        "heal.choice[1].teachers.math",
    ]


def test_the_start_is_given_or_the_middle():
    start = space().start()

    assert start["rules[0].weight.code#0@0"] == 0.3
    assert start["rules[0].weight.math@0"] == 0.6
    assert start["context.factor"] == 2.0  # the middle of a logarithmic range


def test_several_starts_are_joined_by_their_places():
    text = TEXT.replace("start: 0.3", "start: [0.3, 0.9]").replace("[1.0, 4.0], log", "[1.0, 4.0], start: [1.5, 3], log")
    first, second = space(text).starts()

    assert space(text).start() == first
    assert [(each["rules[0].weight.code#0@0"], each["context.factor"]) for each in (first, second)] == [(0.3, 1.5), (0.9, 3.0)]
    assert first["rules[0].weight.math@0"] == second["rules[0].weight.math@0"] == 0.6


def test_starts_of_unlike_number_are_refused():
    text = TEXT.replace("start: 0.3", "start: [0.3, 0.9]").replace("[1.0, 4.0], log", "[1.0, 4.0], start: [1, 2, 3], log")
    with pytest.raises(RecipeError, match=r"code#1@1 has 2 starts and context\.factor 3; give as many everywhere"):
        space(text)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_recipe_comes_back_from_stored_values(seed):
    drawn = values(space(), seed)
    stored = json.loads(json.dumps(drawn))

    assert space().build(stored) == space().build(drawn)
    assert space().build(stored).key() == space().build(drawn).key()


def test_a_choice_joins_its_option_with_the_keys_beside_it():
    drawn = {**space().start(), "rules[0].choice": 1, "rules[0].choice[1].drop_rate.math": 0.25}
    rule = space().build(drawn).rules[0]

    assert (rule.method, rule.match) == ("dare_ties", "*attn*")
    assert rule.knobs["drop_rate"]["math"] == Curve(((0.25,),))
    assert space().build({**drawn, "rules[0].choice": 0}).rules[0].method == "task_arithmetic"


def test_a_choice_may_leave_a_block_out():
    assert space().build({**space().start(), "heal.choice": 0}).heal is None
    assert space().build({**space().start(), "heal.choice": 1}).heal is not None


def test_rows_and_points_fill_a_curve_in_order():
    drawn = {**space().start(), **{f"rules[0].weight.code#{r}@{p}": 0.1 * (2 * r + p) for r in range(2) for p in range(2)}}

    assert space().build(drawn).rules[0].knobs["weight"]["code"] == Curve(((0.0, 0.1), (0.2, 0.1 * 3)))


def test_columns_are_numbered_as_rows_are():
    twin = space(TEXT.replace("rows: 2", "columns: 2"))
    recipe = twin.build(twin.start())

    assert [p.name for p in twin.parameters] == [p.name for p in space().parameters]
    assert recipe.rules[0].knobs["weight"]["code"].across == "columns"


TIED = """
base: b
sources: {math: m}
rules:
  - match: "*down_proj*"
    choice:
      - {method: linear, weight: {base: {range: [0, 1], columns: 2, tied: units}, math: 1.0}}
      - {method: linear, weight: {base: 1.0, math: {range: [0, 1], points: 2}}}
  - {match: "*mlp*", method: linear, weight: {base: {range: [0, 1], rows: 2, tied: units}, math: 1.0}}
  - {match: "*", method: linear, weight: 1.0}
"""


def test_a_tied_number_is_searched_once_and_stands_wherever_it_is_named():
    tied = space(TIED)
    drawn = {**tied.start(), "tied.units#0": 0.2, "tied.units#1": 0.7}

    columns, rows, _ = tied.build(drawn).rules

    assert [p.name for p in tied.parameters if p.name.startswith("tied")] == ["tied.units#0", "tied.units#1"]
    assert columns.knobs["weight"]["base"] == Curve(((0.2,), (0.7,)), "columns")
    assert rows.knobs["weight"]["base"] == Curve(((0.2,), (0.7,)))


def test_a_tied_number_has_a_say_as_long_as_one_of_its_places_has():
    tied = space(TIED)

    assert "tied.units#0" in tied.active({**tied.start(), "rules[0].choice": 1})
    assert "rules[0].choice[1].weight.math@0" not in tied.active({**tied.start(), "rules[0].choice": 0})


@pytest.mark.parametrize(
    "other", ["[0, 2], rows: 2", "[0, 1], rows: 3", "[0, 1], rows: 2, points: 2", "[0, 1], rows: 2, start: 1"]
)
def test_tied_ranges_that_are_not_alike_are_refused(other):
    with pytest.raises(RecipeError, match="the ranges with `tied: units` are not alike"):
        space(TIED.replace("[0, 1], rows: 2", other))


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(seed=0), optuna.samplers.TPESampler(seed=0)])
def test_any_optuna_sampler_can_suggest(sampler):
    study = optuna.create_study(sampler=sampler)
    for _ in range(12):
        trial = study.ask()
        recipe = suggest(space(), trial)
        assert recipe == space().build(trial.params)
        study.tell(trial, 0.0)

    assert len({str(sorted(trial.params)) for trial in study.trials}) == 1  # one space, whatever was chosen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rows: 2", "rows: 2, tied: a@b"), "weight.code.tied: 'a@b' is no name"),
        (("rows: 2", "rows: 2, columns: 2"), "weight.code: groups are of rows or of columns; leave one of the two out"),
        (("[0.0, 0.9]", "[0.9, 0.0]"), "drop_rate.math: the range [0.9, 0] is upside down or empty"),
        (("[1.0, 4.0], log", "[0.0, 4.0], log"), "context.factor: a logarithmic range must begin above 0"),
        (("[0.0, 0.9]", "[0.0, 1.5]"), "drop_rate.math: 1.5 is outside [0, 0.999]"),
        (("[0.0, 0.9]", "[0.0, '0.9']"), "'0.9' is text, a number is expected"),
        (("[0.0, 0.9]", "[0.0]"), "a range has two ends"),
        (("{range: [0.0, 0.9]}", "{range: [0.0, 0.9], point: 3}"), "unknown key 'point'; did you mean 'points'?"),
        (("start: 0.3", "start: 3"), "start: 3 is outside [0, 1.2]"),
        (("start: 0.3", "start: [0.3, 3]"), "start.1: 3 is outside [0, 1.2]"),
        (("start: 0.3", "start: []"), "an empty list; give a number, or one for each beginning"),
        (("{method: task_arithmetic}", "{method: task_arithmetic, match: x}"), "match stands beside the choice and inside it"),
        (("choice: [true, false]", "choice: []"), "`choice` takes a list of at least one option"),
        (("{method: task_arithmetic}", "task_arithmetic"), "an option beside other keys must be a mapping"),
    ],
)
def test_a_space_that_cannot_work_is_refused_before_the_search(change, message):
    with pytest.raises((RecipeError, DocumentError)) as caught:
        space(TEXT.replace(*change))

    assert message in str(caught.value)


STACK = """
base: b
sources: {math: m}
slices:
  - {source: base, layers: [0, 4]}
  - repeat: 3
    source: {choice: [base, math]}
    layers: {choice: [1, 2, 3]}
    on: {choice: [true, false]}
    scale: {range: [0.5, 1.5]}
  - {layers: [4, 8], rules: [{match: "*", method: slerp, t: {range: [0, 1], points: 2}}]}
rules: [{match: "*", method: linear, weight: 1.0}]
"""


def test_a_slice_that_is_repeated_has_parameters_of_its_own_each_time():
    stack = space(STACK)

    assert [p.name for p in stack.parameters[:4]] == [
        "slices[1].source.choice", "slices[1].layers.choice", "slices[1].on.choice", "slices[1].scale",
    ]  # fmt: skip
    assert len(stack.parameters) == 3 * 4 + 2
    assert [part.count for part in stack.build(stack.start()).slices] == [4, 1, 1, 1, 4]


def test_what_is_off_has_no_say_and_makes_no_other_recipe():
    stack = space(STACK)
    start = stack.start() | {"slices[2].on.choice": 1, "slices[1].layers.choice": 2, "slices[1].source.choice": 1}
    other = start | {"slices[2].scale": 1.4, "slices[2].layers.choice": 2}

    assert stack.build(other).key() == stack.build(start).key()
    assert len(stack.build(start).slices) == 4
    assert stack.build(start).slices[1].layers == {"math": (3, 4)}
    idle = {p.name for p in stack.parameters} - stack.active(start)
    assert idle == {"slices[2].scale", "slices[2].layers.choice", "slices[2].source.choice"}


def test_an_option_that_was_not_chosen_has_no_say():
    drawn = {**space().start(), "rules[0].choice": 0, "heal.choice": 0}

    assert {p.name for p in space().parameters} - space().active(drawn) == {
        "rules[0].choice[1].drop_rate.math", "heal.choice[1].teachers.math",
    }  # fmt: skip
    assert "rules[0].choice[1].drop_rate.math" in space().active({**drawn, "rules[0].choice": 1})
    assert space().is_conditional
    assert space(STACK).is_conditional


def test_a_space_that_can_switch_everything_off_is_refused():
    with pytest.raises(RecipeError, match="no layer is left; let at least one slice be without `on: false`"):
        space("{base: b, sources: {m: m}, rules: [], slices: [{source: m, layers: 0, on: {choice: [true, false]}}]}")
