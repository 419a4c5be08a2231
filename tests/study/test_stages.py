"""Coarse to fine: when the study goes over to single layers, around what, and that a resumed one does the same."""

import json

import pytest

from evomerge.document import Place
from evomerge.errors import EvomergeError
from evomerge.recipe import Recipe
from evomerge.space import Space
from evomerge.study.search import search
from evomerge.study.stages import PREFIX, STEP, refined
from tests.laboratory import change
from tests.studies import certificate, ended, in_pieces, parameters

RULES = [
    {
        "match": "*attn*",
        "weight": {"a": {"range": [0.0, 1.0], "points": 3}, "b": {"range": [0.0, 1.0]}},
        "choice": [
            {"method": "task_arithmetic"},
            {"method": "ties", "density": {"a": {"range": [0.1, 1.0], "points": 2}, "b": 0.5}},
        ],
    },
    {
        "match": "*mlp*",
        "method": "linear",
        "weight": {"a": {"range": [0.0, 1.0], "points": 2, "rows": 2, "tied": "curve"}, "b": 0.5},
    },
    {
        "match": "*",
        "method": "linear",
        "weight": {
            "a": {"range": [0.0, 1.0], "points": 2, "columns": 2, "tied": "curve"},
            "b": {"range": [0.0, 1.0], "columns": 2},
        },
    },
]


def space():
    return Space.from_data({"base": "m", "sources": {"a": "m", "b": "m"}, "rules": RULES}, Place("space"))


def values(choice):
    numbers = [0.2, 0.8, 0.4, 0.3, 0.25, 0.75, 0.1, 0.9, 0.6, 0.5]
    found = {p.name: numbers[i % len(numbers)] for i, p in enumerate(space().parameters) if not p.options}
    return found | {p.name: choice for p in space().parameters if p.options}


@pytest.mark.parametrize("choice", [0, 1])
@pytest.mark.parametrize("layers", [1, 2, 5, 9])
def test_the_refined_space_begins_on_the_curves_of_the_recipe(choice, layers):
    coarse, params = space().build(values(choice)), values(choice)

    fine = refined(space(), params, layers)
    begun = fine.build(fine.start())

    for before, after in zip(coarse.rules, begun.rules, strict=True):
        assert (before.match, before.method) == (after.match, after.method)
        for knob in before.knobs:
            for source in ("a", "b") if knob in ("weight", "density") else ():
                for layer in range(layers):
                    depth = layer / max(layers - 1, 1)
                    assert after.knobs[knob][source].across == before.knobs[knob][source].across
                    assert after.knobs[knob][source].at(depth) == pytest.approx(before.knobs[knob][source].at(depth), abs=1e-12)


def test_only_curves_are_open_and_each_layer_is_one_number():
    names = [p.name for p in refined(space(), values(1), 5).parameters]

    assert len(names) == 5 + 5 + 2 * 5  # a's weight and density, a's weight in two groups of columns, which stands in two rules
    assert not any(".b" in name or "choice" in name for name in names)


def test_a_study_goes_over_to_single_layers_around_its_best(laboratory):
    space_file = change(laboratory, search={"refine": True, "trials": 20})
    search(space_file, laboratory / "study", workers=1)
    noted = json.loads((laboratory / "study/refine.json").read_text())

    proposed = parameters(laboratory / "study")
    fine = [params for params in proposed if all(name.startswith(PREFIX) for name in params)]

    assert noted["after"] == 12  # three fifths of the trials
    assert fine == proposed[12:]
    assert len(fine) == 8
    assert noted["params"] in proposed[:12]
    moved = [abs(p[PREFIX + name] - value) / 1.5 for p in fine for name, value in noted["params"].items()]
    assert 0 < sum(moved) / len(moved) < 1.5 * STEP
    for folder in sorted((laboratory / "study/trials").iterdir())[12:]:
        assert Recipe.read(folder / "recipe.yaml").key()[:8] == folder.name[5:]


def test_an_interrupted_study_refines_as_if_it_had_not_been(laboratory):
    space_file = change(laboratory, search={"refine": True, "trials": 16})
    search(space_file, laboratory / "whole", workers=1)
    in_pieces(space_file, laboratory / "study", 9, 1, 3)  # in the first stage, at the border, in the second

    assert parameters(laboratory / "study") == parameters(laboratory / "whole")
    assert ended(laboratory / "study") == ended(laboratory / "whole")
    assert certificate(laboratory / "study")["winner"] == certificate(laboratory / "whole")["winner"]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"search": {"refine": True, "sampler": "tpe", "objectives": ["target", "near"]}}, "around one best recipe"),
        (
            {
                "search": {"refine": True},
                "recipe": {"rules": [{"match": "*", "method": "linear", "weight": {"a": {"range": [0, 1]}, "b": 1}}]},
            },
            "no curve over depth",
        ),
    ],
)
def test_what_cannot_be_refined_is_refused(laboratory, blocks, message):
    with pytest.raises(EvomergeError, match=message):
        search(change(laboratory, **blocks), laboratory / "study", workers=1)
