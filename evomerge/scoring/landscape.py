"""A landscape with a known optimum and noise like a benchmark's: for comparing samplers, and for studies that take no time.

    landscape = Landscape(dims=14)
    landscape.score({"x00": 0.5, ...}, documents=range(96))     0 or 1 for each document, as a benchmark gives
    landscape.mean({"x00": 0.5, ...})                           the truth, over all documents there could be

Parameters lie in [0, 1]; their names only order them. Document d has a difficulty b_d ~ N(0, spread²); a model of skill s answers
it when s + luck > b_d, where luck ~ N(0, luck²) is drawn anew for each pair of document and parameters. Skill falls off as a
rotated quadratic with a few steep directions and many flat ones. All is a pure function of (seed, document, parameters).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Landscape:
    """Share of documents answered: `top` at the optimum, `middle` in the middle of the cube."""

    dims: int = 14
    seed: int = 0
    top: float = 0.75
    middle: float = 0.55
    spread: float = 1.0
    luck: float = 0.5

    @property
    def names(self) -> list[str]:
        return [f"x{i:03d}" for i in range(self.dims)]

    @cached_property
    def optimum(self) -> dict[str, float]:
        return dict(zip(self.names, self._rng("optimum").uniform(0.05, 0.95, self.dims).tolist(), strict=True))

    def score(self, parameters: Mapping[str, float], documents: Sequence[int]) -> Array:
        """1 for each document answered, else 0."""
        return (self.margin(parameters, documents) > 0).astype(np.float64)

    def margin(self, parameters: Mapping[str, float], documents: Sequence[int]) -> Array:
        """By how much each document was answered or missed."""
        point = self._point(parameters)
        difficulty = self.spread * _normal(self._key("difficulty"), documents)
        luck = self.luck * _normal(self._key("luck", point.tobytes()), documents)
        return self._skill(point) + luck - difficulty

    def mean(self, parameters: Mapping[str, float]) -> float:
        """The true share of documents answered: Φ(s / √(spread² + luck²))."""
        return NormalDist(sigma=self._deviation).cdf(self._skill(self._point(parameters)))

    def _skill(self, point: Array) -> float:
        return self._peak - self._steepness * self._distance(point)

    @cached_property
    def _peak(self) -> float:
        return NormalDist(sigma=self._deviation).inv_cdf(self.top)

    @cached_property
    def _steepness(self) -> float:
        drop = self._peak - NormalDist(sigma=self._deviation).inv_cdf(self.middle)
        return drop / self._distance(np.full(self.dims, 0.5))

    def _distance(self, point: Array) -> float:
        away = self._axes @ (point - self._point(self.optimum))
        return float(np.sum(away**2 / np.arange(1, self.dims + 1)))

    @cached_property
    def _axes(self) -> Array:
        axes, _ = np.linalg.qr(self._rng("axes").standard_normal((self.dims, self.dims)))
        return axes

    @property
    def _deviation(self) -> float:
        return float(np.hypot(self.spread, self.luck))

    def _point(self, parameters: Mapping[str, float]) -> Array:
        return np.array([parameters[name] for name in sorted(parameters)], dtype=np.float64)

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng(self._key(what))

    def _key(self, what: str, data: bytes = b"") -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {what} ".encode() + data).digest()[:8], "little")


def _normal(key: int, documents: Sequence[int]) -> Array:
    """One standard normal number for each document: Box-Muller on two hashes."""
    counter = np.asarray(documents, dtype=np.uint64) * np.uint64(2) + np.uint64(key)
    radius, angle = _uniform(counter), _uniform(counter + np.uint64(1))
    return np.asarray(np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle))


def _uniform(counter: NDArray[np.uint64]) -> Array:
    """[0, 1) from the finaliser of SplitMix64 (Steele et al., 2014)."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) / np.float64(2**64)
