"""CMA-ES as a fold over finished trials: the same trials in the same order give the same distribution, bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from cmaes import CMA, CMAwM, SepCMA

from .cube import Vector
from .seeded import seed_for

DIAGONAL_ABOVE = 100  # dimensions from which a full covariance costs more than a few hundred trials can teach it


@dataclass(frozen=True)
class Settings:
    """What the distribution begins with; it is a function of these and of what it is told."""

    mean: tuple[float, ...]
    cells: tuple[int, ...]
    seed: int
    sigma: float
    population: int
    lr_adapt: bool
    collapsed: float


class Told(NamedTuple):
    """One finished trial: where it was, how bad, how far from feasible, and in which run it was asked (None: by others)."""

    point: Vector
    loss: float
    violation: float
    run: int | None


class Asked(NamedTuple):
    """A point to evaluate, and the same before its steps and choices were rounded."""

    point: Vector
    raw: Vector


@dataclass
class Evolution:
    """The distribution, and those told since its last update."""

    settings: Settings
    restarts: int = 0
    waiting: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._cma = self._begin()

    def ask(self, seed: int) -> Asked:
        self._cma.reseed_rng(seed)
        asked = self._cma.ask()
        return Asked(*asked) if isinstance(self._cma, CMAwM) else Asked(asked, asked)

    def tell(self, told: Told) -> None:
        """No generation waits: as soon as a population of results is there, whoever asked for them, the distribution moves."""
        self.waiting.append(told)
        if len(self.waiting) < self._cma.population_size:
            return
        points = [self._reachable(each) for each in self.waiting]
        self._cma.tell(list(zip(points, ranks(self.waiting), strict=True)))
        self.waiting = []
        if self._is_collapsed():
            self.restarts += 1
            self._cma = self._begin()

    def _begin(self) -> Any:
        """Around the start at first; then anywhere, each time with twice the population (IPOP; Auger & Hansen, 2005)."""
        mean = np.array(self.settings.mean)
        if self.restarts:
            mean = np.random.default_rng(seed_for(self.settings.seed, "restart", self.restarts)).random(len(mean))
        return _distribution(mean, self.settings, self.settings.population * 2**self.restarts)

    def _reachable(self, told: Told) -> Vector:
        """A point that this run did not ask for is drawn in to a length that one of its own would hardly exceed.

        Hansen, Injecting external solutions into CMA-ES (2011), with the axes' deviations in place of the Mahalanobis length.
        """
        if told.run == self.restarts:
            return told.point
        mean, n = self._cma.mean, len(told.point)
        longest = math.sqrt(n) + 2 * n / (n + 2)
        length = float(np.linalg.norm((told.point - mean) / self._deviations()))
        return told.point if length <= longest else mean + (told.point - mean) * (longest / length)

    def _deviations(self) -> Vector:
        inner = self._cma._cma if isinstance(self._cma, CMAwM) else self._cma
        variances = inner._C if isinstance(inner, SepCMA) else np.diag(inner._C)
        return np.asarray(inner._sigma * np.sqrt(np.maximum(variances, 0.0)) + 1e-300)

    def _is_collapsed(self) -> bool:
        continuous = self._deviations()[np.array(self.settings.cells) == 0]
        return bool(self._cma.should_stop() or (len(continuous) and continuous.max() < self.settings.collapsed))


def ranks(told: list[Told]) -> list[float]:
    """Feasible ones first, by loss; the others by their total violation, then by loss; among equals who came first."""
    order = sorted(range(len(told)), key=lambda i: (told[i].violation, told[i].loss))
    return [float(order.index(i)) for i in range(len(told))]


def _distribution(mean: Vector, settings: Settings, population: int) -> Any:
    """Plain CMA-ES; with a margin where there are steps or choices (Hamano et al., 2022); diagonal in high dimensions.

    `lr_adapt` (Nomura et al., 2023) exists for the plain one alone and decides for it; steps and choices are then only rounded.
    """
    n, cells = len(mean), np.array(settings.cells)
    bounds = np.tile([0.0, 1.0], (n, 1))
    if settings.lr_adapt:
        return CMA(mean, settings.sigma, bounds=bounds, population_size=population, lr_adapt=True)
    if n > DIAGONAL_ABOVE:
        return SepCMA(mean, settings.sigma, bounds=bounds, population_size=population)
    if not cells.any():
        return CMA(mean, settings.sigma, bounds=bounds, population_size=population)
    steps = np.where(cells > 0, 1 / np.maximum(cells, 1), 0.0)
    bounds = np.stack([steps / 2, 1 - steps / 2], axis=1)  # the centres of the first and the last cell
    return CMAwM(np.clip(mean, *bounds.T), settings.sigma, bounds=bounds, steps=steps, population_size=population)
