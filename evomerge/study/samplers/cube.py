"""The search space as a unit cube: log ranges in log space, choices and steps as cells of equal width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Vector = NDArray[np.float64]


class Cube:
    """The two ways between named parameters and a point of [0, 1]^n."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)

    def __len__(self) -> int:
        return len(self.space)

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """How many values each axis of steps has; 0 for a continuum, and for a choice."""
        return np.where(self.options > 0, 0, [_cells(distribution) for distribution in self.space.values()]).astype(np.int64)

    @cached_property
    def options(self) -> NDArray[np.int64]:
        """How many options each choice has; 0 for a number."""
        kinds = self.space.values()
        return np.array([len(d.choices) if isinstance(d, CategoricalDistribution) else 0 for d in kinds], dtype=np.int64)

    def point(self, params: Mapping[str, Any]) -> Vector:
        """Where these parameters lie; a step or a choice at the centre of its cell, a name that is missing in the middle."""
        low, high, straight = self._straight
        entries = zip(self.space.items(), straight, low.tolist(), high.tolist(), strict=True)
        along = [
            0.5 if name not in params else (params[name] - least) / (most - least) if plain else _position(d, params[name])
            for (name, d), plain, least, most in entries
        ]
        return np.clip(np.array(along, dtype=np.float64), 0.0, 1.0)

    def params(self, point: Vector) -> dict[str, Any]:
        low, high, straight = self._straight
        along = np.where(point >= 1, high, np.clip(low + point * (high - low), low, high)).tolist()
        entries = zip(self.space.items(), straight, along, point, strict=True)
        return {name: value if plain else _value(d, float(x)) for (name, d), plain, value, x in entries}

    @cached_property
    def _straight(self) -> tuple[Vector, Vector, list[bool]]:
        """Ends of the ranges, and which of them are plain: all at once they cost a tenth of one by one."""
        plain = [isinstance(d, FloatDistribution) and d.step is None and not d.log for d in self.space.values()]
        ends = [(d.low, d.high) if isinstance(d, FloatDistribution) else (0.0, 1.0) for d in self.space.values()]
        low, high = np.array(ends, dtype=np.float64).reshape(-1, 2).T
        return low, high, plain


def _cells(distribution: BaseDistribution) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.log or distribution.step is None:  # an integer on a log scale has cells of unequal width: round it
        return 0
    return round((distribution.high - distribution.low) / distribution.step) + 1


def _position(distribution: BaseDistribution, value: Any) -> float:
    if cells := _cells(distribution):
        return (_index(distribution, value) + 0.5) / cells
    low, high = _ends(distribution)
    return ((math.log(value) if _is_log(distribution) else value) - low) / (high - low)


def _value(distribution: BaseDistribution, x: float) -> Any:
    if cells := _cells(distribution):
        index = min(max(math.floor(x * cells), 0), cells - 1)
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[index]
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        return min(distribution.low + index * (distribution.step or 1), distribution.high)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if x >= 1:
        return distribution.high  # exactly: exp(log(8)) is not 8
    low, high = _ends(distribution)
    value = low + x * (high - low)
    value = math.exp(value) if distribution.log else value
    value = round(value) if isinstance(distribution, IntDistribution) else value
    return min(max(value, distribution.low), distribution.high)


def _index(distribution: BaseDistribution, value: Any) -> int:
    if isinstance(distribution, CategoricalDistribution):
        return int(distribution.to_internal_repr(value))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    index: int = round((value - distribution.low) / (distribution.step or 1))
    return index


def _ends(distribution: BaseDistribution) -> tuple[float, float]:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):
        low, high = low - 0.5, high + 0.5  # the end values get cells as wide as their neighbours'
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def _is_log(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log
