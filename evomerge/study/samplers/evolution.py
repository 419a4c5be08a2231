"""CMA-ES as a fold over finished trials: the same trials in the same order give the same distribution, bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from cmaes import CMA, CMAwM, SepCMA
from numpy.typing import NDArray

from .choices import Choices
from .cube import Vector
from .seeded import seed_for

DIAGONAL_ABOVE = 100  # dimensions from which a full covariance costs more than a few hundred trials can teach it


@dataclass(frozen=True)
class Settings:
    """What the distribution begins with; it is a function of these and of what it is told."""

    mean: tuple[float, ...]
    cells: tuple[int, ...]  # of steps; 0 for a continuum
    seed: int
    sigma: float
    population: int
    lr_adapt: bool
    collapsed: float
    options: tuple[int, ...] = ()  # of each choice; 0 for a number. Nothing: all are numbers
    scales: tuple[float, ...] = ()  # of the first standard deviation of each; nothing: all alike


class Told(NamedTuple):
    """One finished trial: where it was, how bad, how far from feasible, and in which run it was asked (None: by others)."""

    point: Vector
    loss: float
    violation: float
    run: int | None


class Asked(NamedTuple):
    """A point to evaluate, and the same before its steps were rounded."""

    point: Vector
    raw: Vector


@dataclass
class Evolution:
    """The distribution of numbers and choices, and those told since its last update."""

    settings: Settings
    restarts: int = 0
    waiting: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = np.array(self.settings.options or (0,) * len(self.settings.mean))
        self._numbers, self._chosen, self._options = options == 0, options > 0, options[options > 0]
        self._cma: Any = None  # where there are no numbers
        self._begin()

    @property
    def population(self) -> int:
        """How many results move the distribution; each time it begins anew, twice as many (IPOP; Auger & Hansen, 2005)."""
        return self.settings.population << self.restarts

    def ask(self, seed: int) -> Asked:
        point, raw = np.empty(len(self._numbers)), np.empty(len(self._numbers))
        if self._cma is not None:
            self._cma.reseed_rng(seed)
            asked = self._cma.ask()
            point[self._numbers], raw[self._numbers] = asked if isinstance(self._cma, CMAwM) else (asked, asked)
        if len(self._options):
            drawn = self._choices.draw(np.random.default_rng(seed_for(seed, "choices")))
            point[self._chosen] = raw[self._chosen] = (np.array(drawn) + 0.5) / self._options
        return Asked(point, raw)

    def tell(self, told: Told) -> None:
        """No generation waits: as soon as a population of results is there, whoever asked for them, the distribution moves."""
        self.waiting.append(self._filled(told))
        if len(self.waiting) < self.population:
            return
        order = ranks(self.waiting)
        if len(self._options):
            self._learn_choices(order)
        if self._cma is not None:
            points = [self._reachable(each) for each in self.waiting]
            self._cma.tell(list(zip(points, order, strict=True)))
        self.waiting = []
        if self._is_collapsed():
            self.restarts += 1
            self._begin()

    def _filled(self, told: Told) -> Told:
        """A number that was not used, NaN, is put where the distribution's mean is: it moves nothing."""
        idle = np.isnan(told.point)
        if not idle.any():
            return told
        mean = np.full(len(idle), np.nan)  # a choice stays what it is: nothing
        if self._cma is not None:
            mean[self._numbers] = self._cma.mean
        return told._replace(point=np.where(idle, mean, told.point))

    def _learn_choices(self, order: list[float]) -> None:
        best_first = sorted(range(len(order)), key=lambda i: order[i])
        places = [self.waiting[i].point[self._chosen] * self._options for i in best_first]
        chosen = [np.where(np.isnan(place), -1, place).astype(int).tolist() for place in places]
        weights = np.maximum(math.log((len(order) + 1) / 2) - np.log(np.arange(1, len(order) + 1)), 0.0)
        self._choices.learn(chosen, (weights / weights.sum()).tolist())

    def _begin(self) -> None:
        """Around the start at first; then anywhere, each time with twice the population."""
        mean = np.array(self.settings.mean)
        if self.restarts:
            mean = np.random.default_rng(seed_for(self.settings.seed, "restart", self.restarts)).random(len(mean))
        cells = np.array(self.settings.cells)[self._numbers]
        self._choices = Choices(self._options.tolist(), self.population)
        self._cma = _distribution(mean[self._numbers], cells, self.settings, self.population) if self._numbers.any() else None
        if self._cma is not None and self.settings.scales:
            _stretch(self._cma, np.array(self.settings.scales)[self._numbers])

    def _reachable(self, told: Told) -> Vector:
        """A point that this run did not ask for is drawn in to a length that one of its own would hardly exceed.

        Hansen, Injecting external solutions into CMA-ES (2011), with the axes' deviations in place of the Mahalanobis length.
        """
        point: Vector = told.point[self._numbers]
        if told.run == self.restarts:
            return point
        mean, n = self._cma.mean, len(point)
        longest = math.sqrt(n) + 2 * n / (n + 2)
        length = float(np.linalg.norm((point - mean) / self._deviations()))
        near: Vector = point if length <= longest else mean + (point - mean) * (longest / length)
        return near

    def _deviations(self) -> Vector:
        inner = self._cma._cma if isinstance(self._cma, CMAwM) else self._cma
        variances = inner._C if isinstance(inner, SepCMA) else np.diag(inner._C)
        return np.asarray(inner._sigma * np.sqrt(np.maximum(variances, 0.0)) + 1e-300)

    def _is_collapsed(self) -> bool:
        if self._cma is None:
            return False
        continuous = self._deviations()[np.array(self.settings.cells)[self._numbers] == 0]
        return bool(self._cma.should_stop() or (len(continuous) and continuous.max() < self.settings.collapsed))


def _stretch(cma: Any, scales: Vector) -> None:
    """Other standard deviations to begin with, whatever kind of distribution it is."""
    inner = cma._cma if isinstance(cma, CMAwM) else cma
    inner._C = inner._C * scales**2 if isinstance(inner, SepCMA) else np.diag(scales**2)
    inner._D, inner._B = None, getattr(inner, "_B", None) if isinstance(inner, SepCMA) else None


def ranks(told: list[Told]) -> list[float]:
    """Feasible ones first, by loss; the others by their total violation, then by loss; among equals who came first."""
    order = sorted(range(len(told)), key=lambda i: (told[i].violation, told[i].loss))
    return [float(order.index(i)) for i in range(len(told))]


def _distribution(mean: Vector, cells: NDArray[np.int64], settings: Settings, population: int) -> Any:
    """Plain CMA-ES; with a margin where there are steps (Hamano et al., 2022); diagonal in high dimensions.

    `lr_adapt` (Nomura et al., 2023) exists for the plain one alone and decides for it; steps are then only rounded.
    """
    n = len(mean)
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
