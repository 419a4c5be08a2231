"""A bet against "no better than the reference": proof at any time, however often somebody looks.

Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting (2024). The wealth of whoever bets on the candidate
grows past 1/α with chance α at most if the candidate is no better (Ville): for a reference, and a candidate, that were chosen
before the first of these documents. For one that was found on the very documents the chance is larger: `evomerge bench anytime`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.errors import ScoringError
from evomerge.scoring.scores import Scores

Array = NDArray[np.float64]

BOLDEST = 0.5  # a bet never risks more than half


def wealth(differences: ArrayLike) -> Array:
    """Wealth after each step: Π (1 + λ d) for differences in [-1, 1], λ in [0, ½] from the steps before alone.

    [..., n] in and out: the last axis is time. λ = mean / (variance + mean²), what would have grown fastest so far.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.size and (not np.isfinite(d).all() or np.abs(d).max() > 1 + 1e-12):
        raise ValueError("differences must lie in [-1, 1]")
    count = np.arange(1, d.shape[-1] + 1)
    total, squares = np.cumsum(d, axis=-1), np.cumsum(d * d, axis=-1)
    mean = total / (count + 1)  # as if one difference of 0 had come first
    spread = (squares + 0.25) / (count + 1)  # and one of ½ in its square
    bets = np.clip(mean / np.maximum(spread, 1e-12), 0.0, BOLDEST)
    bets = np.concatenate([np.zeros((*d.shape[:-1], 1)), bets[..., :-1]], axis=-1)
    return np.asarray(np.exp(np.cumsum(np.log1p(bets * d), axis=-1)))


def steps(
    candidate: Scores, reference: Scores, weights: Mapping[str, float], order: Mapping[str, Sequence[int]], margin: float = 0.0
) -> Array:
    """One difference a step: the weighted mean over the tasks of candidate - reference on their next documents, less the margin.

    Tasks are interleaved, a document of each a step, in the order of the rungs; scaled to [-1, 1]. Raises ScoringError where a
    score lies outside [0, 1].
    """
    tasks = [task for task, weight in weights.items() if weight > 0]
    asked = {task: [doc for doc in order[task] if doc in candidate.task(task)] for task in tasks}
    count = min(len(docs) for docs in asked.values())
    total = sum(weights[task] for task in tasks)
    found = np.full(count, -margin)
    for task in tasks:
        pair = [[scores.values(task)[doc] for doc in asked[task][:count]] for scores in (candidate, reference)]
        if count and not 0 <= np.min(pair) <= np.max(pair) <= 1:
            raise ScoringError(f"search.anytime: {task} has scores outside 0 and 1; a bet needs bounds, leave it out")
        found += weights[task] / total * (np.array(pair[0]) - np.array(pair[1]))
    return found / (1 + abs(margin))


def evidence(differences: ArrayLike) -> tuple[float, float]:
    """The most wealth that betting on the candidate, and against it, ever had."""
    d = np.asarray(differences, dtype=np.float64)
    if not d.size:
        return 1.0, 1.0
    return max(1.0, float(wealth(d).max())), max(1.0, float(wealth(-d).max()))


def enough(trial: int, alpha: float) -> float:
    """What the wealth of trial 1, 2, … must reach so that all trials together err with chance α: k (k + 1) / α."""
    return trial * (trial + 1) / alpha
