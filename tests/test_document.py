"""YAML is read by the rules of YAML 1.2, and what is not known is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.document import LONG, MARK, Block, Place, dump_yaml, parse_yaml, read_yaml
from evomerge.errors import DocumentError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e6", 2_000_000.0),
        ("1e-5", 0.00001),
        (".5", 0.5),
        ("010", 10),
        ("0x1f", 31),
        ("no", "no"),
        ("on", "on"),
        ("8:30", "8:30"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("2026-11-21", "2026-11-21"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text, value):
    assert parse_yaml(f"key: {text}", "x.yaml") == {"key": value}


scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=12)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3)
)


@given(trees)
def test_what_is_written_is_read_back_unchanged(tree):
    assert parse_yaml(dump_yaml({"tree": tree}), "x.yaml") == {"tree": tree}


numbers = st.lists(st.floats(allow_nan=False), min_size=LONG - 1, max_size=3 * LONG)
marked = st.sampled_from(["", "plain", MARK, f"{MARK} and {MARK}", f"[0.5]\n{MARK}"])


@given(st.lists(st.dictionaries(st.sampled_from(["a", "weight", MARK]), numbers | st.lists(numbers, max_size=2) | marked)))
def test_long_lists_of_numbers_are_read_back_unchanged_whatever_texts_stand_beside_them(tree):
    assert parse_yaml(dump_yaml({"tree": tree}), "x.yaml") == {"tree": tree}


def test_a_key_that_stands_twice_is_refused_with_its_line():
    with pytest.raises(DocumentError, match=r"x\.yaml, line 2: .*'a' stands twice"):
        parse_yaml("a: 1\na: 2\n", "x.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DocumentError, match=r"nowhere\.yaml: cannot be read"):
        read_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("data", "read", "message"),
    [
        ({"wieght": 1}, lambda b: None, "x.yaml: rule: unknown key 'wieght'; did you mean 'weight'? (known: weight, name, on)"),
        ({"weight": "0.5"}, lambda b: b.number("weight"), "rule.weight: '0.5' is text, a number is expected"),
        ({"weight": True}, lambda b: b.number("weight"), "rule.weight: expected a number, found true or false True"),
        ({"weight": math.nan}, lambda b: b.number("weight"), "rule.weight: nan is not a finite number"),
        ({"weight": 3}, lambda b: b.number("weight", high=2), "rule.weight: 3 is outside [-inf, 2]"),
        ({"weight": 1.5}, lambda b: b.integer("weight"), "rule.weight: expected a whole number, found a number 1.5"),
        ({}, lambda b: b.number("weight"), "rule: 'weight' is missing"),
        ({"name": 3}, lambda b: b.text("name"), "rule.name: expected text, found a number 3"),
        ({"name": "tie"}, lambda b: b.text("name", among=["ties"]), "rule.name: 'tie' is not known; did you mean 'ties'?"),
        ({"on": "yes"}, lambda b: b.flag("on"), "rule.on: expected true or false, found text 'yes'"),
        ({"weight": 1}, lambda b: b.mapping("weight"), "rule.weight: expected a mapping, found a number 1"),
        ({"weight": 1}, lambda b: b.sequence("weight"), "rule.weight: expected a list, found a number 1"),
    ],
)
def test_a_complaint_names_file_place_and_remedy(data, read, message):
    with pytest.raises(DocumentError) as caught:
        read(Block(data, Place("x.yaml", "rule"), ["weight", "name", "on"]))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_count_may_be_written_as_2e6():
    assert Block({"tokens": 2e6}, Place("x"), ["tokens"]).integer("tokens") == 2_000_000
