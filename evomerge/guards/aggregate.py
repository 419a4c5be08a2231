"""Several tasks become one number, as the suite names it, and how that number moves with each of them.

`Suite.combine` for estimates and resamples: arrays are welcome, and so are estimates that fall below 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import SuiteError
from evomerge.scoring.suite import AGGREGATES, FLOOR

Array = NDArray[np.float64]


def aggregate(
    means: Mapping[str, float | Array],
    kind: str,
    weights: Mapping[str, float] | None = None,
    references: Mapping[str, float] | None = None,
) -> Array:
    """One number from the mean of every task (0-d), or one per column where the means are arrays.

    mean       Σ w m / Σ w
    geometric  exp(Σ w ln max(m, FLOOR) / Σ w): what one task loses another must win back in proportion
    min        the lowest of the tasks that have a weight
    relative   Σ w (m / reference) / Σ w; the references are the best parent's mean of each task, fixed before the search
    """
    names, w = shares(means, kind, weights)
    m = np.stack([np.asarray(means[name], dtype=np.float64) for name in names])  # [T, ...]
    if kind == "geometric":
        return np.asarray(np.exp(np.tensordot(w, np.log(np.maximum(m, FLOOR)), axes=1)))
    if kind == "min":
        return np.asarray(m[w > 0].min(axis=0))
    if kind == "relative":
        w = w / _references(names, references)
    return np.asarray(np.tensordot(w, m, axes=1))


def gradient(
    means: Mapping[str, float],
    kind: str,
    weights: Mapping[str, float] | None = None,
    references: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """How much the aggregate moves with the mean of each task: the weights of the delta method."""
    names, w = shares(means, kind, weights)
    m = np.array([means[name] for name in names], dtype=np.float64)
    if kind == "geometric":
        w = w * float(aggregate(means, kind, weights)) / np.maximum(m, FLOOR)
    elif kind == "min":
        w = (np.arange(len(m)) == np.where(w > 0, m, np.inf).argmin()).astype(np.float64)
    elif kind == "relative":
        w = w / _references(names, references)
    return dict(zip(names, w.tolist(), strict=True))


def shares(tasks: Iterable[str], kind: str, weights: Mapping[str, float] | None) -> tuple[list[str], Array]:
    """The tasks that count, in the order of their names, and their weights summing to one; without weights all alike."""
    if kind not in AGGREGATES:
        raise SuiteError(f"suite.aggregate: unknown {kind!r}; known are {', '.join(AGGREGATES)}")
    present = set(tasks)
    names = sorted(present if weights is None else weights)
    missing = [name for name in names if name not in present]
    if missing or not names:
        raise SuiteError(f"suite.tasks: no scores of {', '.join(missing) or 'any task'}; score every task of the suite first")
    w = np.array([1.0 if weights is None else weights[name] for name in names])
    if w.min() < 0 or w.sum() <= 0:
        raise SuiteError(f"suite.tasks: weights must be 0 or more and not all 0, not {w.tolist()}")
    return names, w / w.sum()


def _references(names: list[str], references: Mapping[str, float] | None) -> Array:
    missing = [name for name in names if name not in (references or {})]
    if references is None or missing:
        raise SuiteError(f"suite.aggregate: relative needs the best parent's mean of {', '.join(missing)}")
    return np.maximum([references[name] for name in names], FLOOR)
