"""Knobs as a method finds them: numbers for each source, and for each of equal groups of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import RecipeError
from evomerge.methods.combine import groups
from evomerge.methods.inputs import Inputs

Knobs = Mapping[str, Any]
Rows = tuple[float, ...]  # [G], one number for each group of rows


def per_source(inputs: Inputs, knob: Any) -> list[Rows]:
    """A knob's numbers for each source; a single number is everybody's."""
    return [rows(value) for value in ordered(inputs, knob)]


def ordered(inputs: Inputs, knob: Any) -> Sequence[Any]:
    """A knob's value for each source, in their order."""
    names = inputs.place.sources
    if isinstance(knob, Mapping):
        return [knob[name] for name in names]
    return knob if isinstance(knob, (list, tuple)) else [knob] * len(names)


def rows(value: Any) -> Rows:
    return tuple(float(v) for v in value) if isinstance(value, (list, tuple)) else (float(value),)


def whole_numbers(inputs: Inputs, knobs: Knobs, name: str) -> list[float]:
    """A knob that has one number for each source's whole tensor."""
    return [_single(name, value) for value in per_source(inputs, knobs[name])]


def one_number(knobs: Knobs, name: str, default: float) -> float:
    """A knob that has one number for the whole tensor."""
    return _single(name, rows(knobs.get(name, default)))


def _single(name: str, value: Rows) -> float:
    if len(value) > 1:
        raise RecipeError(f"{name}: {len(value)} row groups, but it is one number for a tensor; give rows to the weight")
    return value[0]


def sums(weight: Sequence[Rows], scale: Rows = (1.0,)) -> list[tuple[float, float]]:
    """Σ wₖ of each group of rows, and its scale."""
    return [(math.fsum(group.weight), group.scale) for _, group in groups(0, weight, scale)]


def shares(inputs: Inputs, weight: Sequence[Rows]) -> list[tuple[float, ...]]:
    """Weights that add up to 1, for each group of rows. Raises RecipeError where they add up to 0."""
    found = []
    for _, group in groups(0, weight, (1.0,)):
        total = math.fsum(group.weight) or no_average(inputs)
        found.append(tuple(w / total for w in group.weight))
    return found


def no_average(inputs: Inputs) -> float:
    raise RecipeError(f"the weights of {inputs.place.tensor} add up to 0; raise one, or set normalize: false")
