"""Which delta helps where: known by construction, scored by a study, shown in its report."""

import json

import pytest

from evomerge.document import Place
from evomerge.recipe import Recipe
from evomerge.report.importance import importances
from evomerge.report.view import View
from evomerge.report.write import write_report
from evomerge.study.attribution import PARTS, leave_one_out
from evomerge.study.search import search
from tests.laboratory import change

RULES = [
    {"match": "*attn*", "method": "ties", "density": 0.5, "weight": {"a": [0.2, 0.8], "b": 0.0}},
    {"match": "*", "method": "task_arithmetic", "weight": {"a": 0.5, "b": {"columns": [0.1, [0.2, 0.4]]}}},
]


def recipe():
    return Recipe.from_data({"base": "m", "sources": {"a": "m", "b": "m"}, "rules": RULES}, Place("recipe"))


def test_every_delta_is_left_out_of_every_rule_that_has_it():
    found = [(each.block, each.source) for each in leave_one_out(recipe(), layers=2)]

    assert found == [("rules[0] *attn*", "a"), ("rules[1] *", "a"), ("rules[1] *", "b")]


@pytest.mark.parametrize("layers", [3, 7, 32])
def test_left_out_of_a_third_it_is_whole_in_the_others(layers):
    thirds = [each for each in leave_one_out(recipe(), layers) if each.block in PARTS]

    assert len(thirds) == 2 * len(PARTS)
    for each in thirds:
        part = PARTS.index(each.block)
        assert [rule.knobs["weight"]["b"].across for rule in each.recipe.rules] == ["rows", "columns"]
        for rule, whole in zip(each.recipe.rules, recipe().rules, strict=True):
            for source in ("a", "b"):
                for layer in range(layers):
                    depth = layer / (layers - 1)
                    gone = source == each.source and layer * 3 // layers == part
                    expected = (
                        [0.0] * len(whole.knobs["weight"][source].at(depth)) if gone else whole.knobs["weight"][source].at(depth)
                    )
                    assert rule.knobs["weight"][source].at(depth) == pytest.approx(expected, abs=1e-9)


def test_a_study_tells_which_source_helps_in_which_layer(laboratory):
    """In the laboratory source a carries layer 0, on which `close` depends, and b layer 1, on which `near` does not."""
    space = change(laboratory, search={"attribution": 2, "trials": 24})
    search(space, laboratory / "study", workers=1)
    write_report(laboratory / "study")

    noted = json.loads((laboratory / "study/attribution.json").read_text())
    rows = next(iter(noted.values()))
    assert len(noted) == 2
    assert {row["source"] for row in rows} == {"a", "b"}
    a = next(row for row in rows if row["source"] == "a")
    assert a["worth"] > 0
    assert a["low"] > 0
    text = (laboratory / "study/report.md").read_text()
    assert "## Which source helps where" in text
    assert "| helps |" in text
    assert "## What mattered in the search" in text


def test_importances_add_up_and_put_first_what_decides(laboratory):
    """Only b's weight counts where a's tensors are all but zero."""
    search(change(laboratory, search={"sampler": "random", "trials": 40, "eta": 1}), laboratory / "study", workers=1)

    found = importances(View.of(laboratory / "study"))

    assert sum(found.values()) == pytest.approx(1.0)
    assert set(found) == {f"rules[0].weight.{source}@{point}" for source in "ab" for point in (0, 1)}
    assert max(found, key=found.get) in ("rules[0].weight.a@0", "rules[0].weight.b@1")  # a@1 and b@0 move nothing
