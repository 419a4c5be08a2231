"""How sure a paired difference is: the exact, the normal and the resampled answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evomerge.guards.flips import exact_interval, mcnemar, mcnemar_greater
from evomerge.guards.pairs import Array, Pairs

PLENTY = 300  # documents, and
DIFFERING = 30  # of them scored differently: from here on normal theory is trusted
RESAMPLES = 10_000


class Inference(NamedTuple):
    se: float
    low: float
    high: float
    p_greater: float  # of "the candidate is no better"
    p_two_sided: float  # of "they are equal"
    method: str


def few(pairs: Sequence[Pairs]) -> bool:
    """Too little to trust normal theory."""
    return sum(len(p.sizes) for p in pairs) < PLENTY or sum(p.differing for p in pairs) < DIFFERING


def by_count(pairs: Pairs, confidence: float) -> Inference:
    """0/1 scores, few of them or few flips: the exact interval, and McNemar's exact test, which anybody can check."""
    low, high = exact_interval(pairs.lost, pairs.won, pairs.n, confidence)
    p_greater, p_two_sided = mcnemar_greater(pairs.lost, pairs.won), mcnemar(pairs.lost, pairs.won)
    return Inference(pairs.variance**0.5, low, high, p_greater, p_two_sided, "exact")


def by_student(pairs: Sequence[Pairs], slopes: Sequence[float], confidence: float) -> Inference:
    """Σ slope · difference over the tasks: paired t, degrees of freedom after Satterthwaite (1946).

    Where documents are few, two more are counted in the spread, one won and one lost by the largest difference seen (as
    Agresti & Min 2005 do for 0/1): differences that happen to be alike, or none at all, are no certainty.
    """
    from scipy.special import stdtr, stdtrit

    difference = sum(s * p.difference for s, p in zip(slopes, pairs, strict=True))
    parts = np.array([s**2 * p.variance for s, p in zip(slopes, pairs, strict=True)])
    freedom = np.array([max(len(p.sizes) - 1, 1) for p in pairs])
    df = float(parts.sum() ** 2 / (parts**2 / freedom).sum()) if parts.any() else float(freedom.sum())
    extra = 2 * max((s * p.largest / p.n) ** 2 for s, p in zip(slopes, pairs, strict=True)) if few(pairs) else 0.0
    spread = float((parts.sum() + extra) ** 0.5)
    t = difference / spread if spread else np.inf * np.sign(difference)
    reach = float(stdtrit(df, (1 + confidence) / 2)) * spread
    p_greater, p_two_sided = float(stdtr(df, -t)), float(2 * stdtr(df, -abs(t)))
    method = "paired t, two documents added" if extra else "paired t"
    return Inference(float(parts.sum() ** 0.5), difference - reach, difference + reach, p_greater, p_two_sided, method)


Combine = Callable[[dict[str, Array]], Array]  # {task: means [B]} to one number each [B]


def by_bootstrap(tasks: Mapping[str, Pairs], combine: Combine, confidence: float, seed: int) -> Inference:
    """Any function of the task means: percentiles over documents drawn again within each task, both models together."""
    rng = np.random.default_rng(seed)
    scarce = few(list(tasks.values()))
    drawn = {name: _resample(pairs, rng, scarce) for name, pairs in sorted(tasks.items())}
    new, old = (combine({name: means[side] for name, means in drawn.items()}) for side in (0, 1))
    difference = new - old
    low, high = np.quantile(difference, [(1 - confidence) / 2, (1 + confidence) / 2])
    p_greater, p_less = ((1 + int(side.sum())) / (len(difference) + 1) for side in (difference <= 1e-12, difference >= -1e-12))
    method = f"bootstrap, {len(difference)} resamples" + (", two documents added" if scarce else "")
    return Inference(float(difference.std()), float(low), float(high), p_greater, min(1.0, 2 * min(p_greater, p_less)), method)


def _resample(pairs: Pairs, rng: np.random.Generator, scarce: bool) -> tuple[Array, Array]:
    """Means of both models over `RESAMPLES` draws [B]; equal rows are drawn as counts, which is the same and fast."""
    rows = np.stack([pairs.candidate, pairs.reference, pairs.sizes], axis=1)
    if scarce:
        rows = np.concatenate([rows, _two_more(pairs)])
    kinds, frequency = np.unique(rows, axis=0, return_counts=True)
    counts = rng.multinomial(len(rows), frequency / len(rows), size=RESAMPLES)  # [B, kinds]
    new, old, size = (counts @ kinds).T
    return new / size, old / size


def _two_more(pairs: Pairs) -> Array:
    """One document won and one lost by the largest difference seen, about the level of both."""
    level, half = sum(pairs.means) / 2, pairs.largest / 2
    return np.array([[level + half, level - half, 1.0], [level - half, level + half, 1.0]])
