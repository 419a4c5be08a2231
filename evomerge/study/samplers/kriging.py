"""Gaussian processes that share a kernel: the answers to many documents, each as a function of where a recipe lies."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

LENGTH = 0.32  # of the kernel, before anything is known: times the square root of the dimensions, in widths of the ranges
LOOSE, MANY = 2.0, 100  # standard deviation of the logarithm of a length around that, if learned from that many answers or more
LENGTHS, NOISES = (0.05, 50.0), (1e-3, 1.0)  # bounds of lengths, and of the variance of the noise beside 1 for what bends
ENOUGH, LATEST = 150, 200  # answers, and points of the latest, that the kernel is chosen by
STEPS = 60  # of the search for it
DOUBTFUL, SEEN = 0.1, 16  # noise above which answers are asked for the kernel of their mean as well, of so many points or more
TINY = 1e-9


class Kernel(NamedTuple):
    """k(a, b) = exp(-½ Σ (aᵢ - bᵢ)² / lengthᵢ²), with `noise` on the diagonal; a length for each dimension, [d]."""

    lengths: Array
    noise: float

    def __call__(self, a: Array, b: Array) -> Array:
        a, b = a / self.lengths, b / self.lengths
        apart = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
        return np.asarray(np.exp(-np.maximum(apart, 0.0) / 2), dtype=np.float64)

    def inverse(self, points: Array) -> Array:
        return np.asarray(np.linalg.inv(self(points, points) + self.noise * np.eye(len(points))), dtype=np.float64)


class Processes:
    """What `answers` [n, m] at `points` [n, d] say of other points; one kernel for all m (Rasmussen & Williams, 2006, ch. 2).

    Each answer has a mean and a scale of its own. Without a kernel it is the likeliest, every answer counted in units of what it
    varies by: a dimension that matters little gets a great length (section 5.1).
    """

    def __init__(self, points: Array, answers: Array, kernel: Kernel | None = None) -> None:
        self.points, self.centre = points, answers.mean(axis=0)
        self._moved = answers - self.centre
        self.kernel = kernel or of_all(points, self._moved)
        self._inverse = self.kernel.inverse(points)
        self._weights: Array = self._inverse @ self._moved

    @cached_property
    def scale(self) -> Array:
        """[m]: the standard deviation of each answer before anything was seen, by maximum likelihood."""
        found: Array = np.sqrt(np.maximum((self._moved * self._weights).mean(axis=0), TINY))
        return found

    @cached_property
    def missed(self) -> Array:
        """[m]: mean squared leave-one-out error of each answer."""
        found: Array = (_left_out(self._inverse, self._moved) ** 2).mean(axis=0)
        return found

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean [k, m], and standard deviation [k] in units of each answer's scale."""
        near = self.kernel(points, self.points)
        left = 1 - ((near @ self._inverse) * near).sum(axis=1)
        return self.centre + near @ self._weights, np.sqrt(np.maximum(left, TINY))

    def believing(self, points: Array) -> Processes:
        """The same after these points turned out as expected: there is nothing left to find out there."""
        if not len(points):
            return self
        told = np.concatenate([self.centre + self._moved, self.predict(points)[0]])
        return Processes(np.concatenate([self.points, points]), told, self.kernel)


def of_all(points: Array, moved: Array) -> Kernel:
    """The kernel of the answers; where they are much noise, that of their mean if it foretells the mean better.

    What luck makes of a single answer is gone in the mean of hundreds, where a function that they share can be seen.
    """
    kernel, mean = chosen(points, moved), moved.mean(axis=1, keepdims=True)
    if kernel.noise < DOUBTFUL or len(points) < SEEN:
        return kernel
    return min(kernel, chosen(points, mean), key=lambda each: float((_left_out(each.inverse(points), mean) ** 2).mean()))


def chosen(points: Array, moved: Array) -> Kernel:
    """The kernel under which the answers are likeliest, lengths drawn to `LENGTH` as long as little speaks for others; the fewer
    answers, the more."""
    points, some = points[-LATEST:], moved[-LATEST:, :: max(1, moved.shape[1] // ENOUGH)]
    some = some / np.maximum(some.std(axis=0), TINY)
    dims = points.shape[1]
    first = np.log([*np.full(dims, LENGTH * math.sqrt(dims)), 0.03])
    bounds = [tuple(np.log(LENGTHS))] * dims + [tuple(np.log(NOISES))]
    asked = points, some @ some.T / some.shape[1], first[:-1], LOOSE * min(1.0, math.sqrt(some.shape[1] / MANY))
    found = minimize(_unlikely, first, asked, "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": STEPS})
    return _kernel(found.x)


def noisy(kernel: Kernel, points: Array, answers: Array) -> Kernel:
    """The same lengths, with the noise under which these answers are likeliest."""
    moved = answers - answers.mean(axis=0)
    moved = moved / np.maximum(moved.std(axis=0), TINY)
    products, lengths = moved @ moved.T / moved.shape[1], np.log(kernel.lengths)
    noises = np.geomspace(*NOISES, 13)
    unlikely = [_unlikely(np.append(lengths, math.log(noise)), points, products, lengths, LOOSE)[0] for noise in noises]
    return kernel._replace(noise=float(noises[int(np.argmin(unlikely))]))


def _kernel(logarithms: Array) -> Kernel:
    return Kernel(np.exp(logarithms[:-1]), float(np.exp(logarithms[-1])))


def _unlikely(logarithms: Array, points: Array, products: Array, usual: Array, loose: float) -> tuple[float, Array]:
    """-log of the likelihood of an answer whose mean outer product is `products` [n, n], its scale the likeliest one, and of
    lengths that far from what is usual; with its gradient (Rasmussen & Williams, equation 5.9)."""
    kernel, count = _kernel(logarithms), len(points)
    bends = kernel(points, points)
    whole = bends + kernel.noise * np.eye(count)
    inverse = np.linalg.inv(whole)
    weighed = inverse @ products
    scale = float(np.trace(weighed)) / count
    away = (logarithms[:-1] - usual) / loose
    value = (count * math.log(max(scale, TINY)) + float(np.linalg.slogdet(whole)[1]) + float(away @ away)) / 2
    slope = (inverse - weighed @ inverse / max(scale, TINY)) / 2  # by each element of `whole`
    pulls, scaled = slope * bends, points / kernel.lengths
    lengths = 2 * (pulls.sum(axis=1) @ scaled**2 - (scaled * (pulls @ scaled)).sum(axis=0)) + away / loose
    return value, np.append(lengths, np.trace(slope) * kernel.noise)


def _left_out(inverse: Array, moved: Array) -> Array:
    """What each point differs by from what all others foretell of it."""
    errors: Array = (inverse @ moved) / np.diag(inverse)[:, None]
    return errors
