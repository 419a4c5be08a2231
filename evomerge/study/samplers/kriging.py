"""Gaussian processes that share a kernel: the answers to many documents, each as a function of where a recipe lies."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LINEAR = 0.3  # of the kernel's straight part, beside 1 for what bends
LENGTHS = (0.08, 0.15, 0.23, 0.32, 0.45, 0.65, 1.0)  # over the square root of the dimensions, in widths of the ranges
NOISES = (0.01, 0.03, 0.1, 0.3)  # variance of the noise, beside 1 for what bends
ENOUGH, LATEST = 96, 200  # answers, and points of the latest, that the kernel is chosen by
TINY = 1e-9


class Kernel(NamedTuple):
    """k(a, b) = exp(-|a - b|² / 2 length²) + LINEAR (a - ½)·(b - ½), with `noise` on the diagonal."""

    length: float
    noise: float

    def __call__(self, a: Array, b: Array) -> Array:
        apart = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
        bends = np.exp(-np.maximum(apart, 0.0) / (2 * self.length**2))
        return np.asarray(bends + LINEAR * (a - 0.5) @ (b - 0.5).T, dtype=np.float64)

    def inverse(self, points: Array) -> Array:
        return np.asarray(np.linalg.inv(self(points, points) + self.noise * np.eye(len(points))), dtype=np.float64)

    def at(self, points: Array) -> Array:
        """k(x, x) of every point, without noise."""
        diagonal: Array = 1 + LINEAR * ((points - 0.5) ** 2).sum(axis=1)
        return diagonal


class Processes:
    """What `answers` [n, m] at `points` [n, d] say of other points; one kernel for all m (Rasmussen & Williams, 2006, ch. 2).

    Each answer has a mean and a scale of its own. Without a kernel it is the one of a small grid whose leave-one-out errors
    (section 5.4.2) are the smallest, every answer counted in units of what it varies by.
    """

    def __init__(self, points: Array, answers: Array, kernel: Kernel | None = None) -> None:
        self.points, self.centre = points, answers.mean(axis=0)
        self._moved = answers - self.centre
        self.kernel = kernel or chosen(points, self._moved)
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
        left = self.kernel.at(points) - ((near @ self._inverse) * near).sum(axis=1)
        return self.centre + near @ self._weights, np.sqrt(np.maximum(left, TINY))

    def believing(self, points: Array) -> Processes:
        """The same after these points turned out as expected: there is nothing left to find out there."""
        if not len(points):
            return self
        told = np.concatenate([self.centre + self._moved, self.predict(points)[0]])
        return Processes(np.concatenate([self.points, points]), told, self.kernel)


def chosen(points: Array, moved: Array) -> Kernel:
    """The kernel of the grid that foretells each point best from all others."""
    points, some = points[-LATEST:], moved[-LATEST:, :: max(1, moved.shape[1] // ENOUGH)]
    some = some / np.maximum(some.std(axis=0), TINY)
    widths = [length * np.sqrt(points.shape[1]) for length in LENGTHS]
    grid = (Kernel(width, noise) for width in widths for noise in NOISES)
    return min(grid, key=lambda kernel: float((_left_out(kernel.inverse(points), some) ** 2).mean()))


def _left_out(inverse: Array, moved: Array) -> Array:
    """What each point differs by from what all others foretell of it."""
    errors: Array = (inverse @ moved) / np.diag(inverse)[:, None]
    return errors
