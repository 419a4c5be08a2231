"""What counts of flipped documents say by themselves: exact and score statistics of paired 0/1 outcomes.

`lost` documents were right before and are wrong now (negative flips), `won` ones the reverse, of `n` in all;
`difference` is the probability of winning a document minus that of losing it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_NUISANCE = 1e-4  # share of the error spent on bounding the nuisance rate (Berger & Boos 1994)


class Interval(NamedTuple):
    low: float
    high: float


def clopper_pearson(count: int, n: int, alpha: float = 0.05) -> Interval:
    """Exact bounds of a rate, each of them one-sided at `alpha`."""
    from scipy.special import betaincinv

    low = float(betaincinv(count, n - count + 1, alpha)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - alpha)) if count < n else 1.0
    return Interval(low, high)


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p of "as many won as lost": 2 min P(Bin(lost + won, ½) ≤ min(lost, won)) (McNemar 1947)."""
    return min(1.0, 2 * min(mcnemar_greater(lost, won), mcnemar_greater(won, lost)))


def mcnemar_greater(lost: int, won: int) -> float:
    """Exact one-sided p of "no more won than lost": P(Bin(lost + won, ½) ≥ won)."""
    from scipy.special import bdtr

    return float(bdtr(lost, lost + won, 0.5)) if won else 1.0  # P(X ≥ won) = P(X ≤ lost) at ½


def score_statistic(won: ArrayLike, lost: ArrayLike, n: int, difference: ArrayLike) -> Array:
    """Standardised distance from `difference`, its variance taken where `difference` is true (Tango 1998, eq. 11)."""
    x, y, d = np.asarray(won, float), np.asarray(lost, float), np.asarray(difference, float)
    b = -x - y + (2 * n - x + y) * d
    c = -y * d * (1 - d)
    q = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)  # rate of losing, given the difference
    distance = x - y - n * d
    spread = np.sqrt(np.maximum(n * (2 * q + d * (1 - d)), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(distance == 0, 0.0, distance / spread))


def exact_interval(lost: int, won: int, n: int, confidence: float = 0.95) -> Interval:
    """Interval of the difference that holds its confidence with few flips, or none."""
    alpha = (1 - confidence) / 2
    return Interval(-exact_bound(lost, won, n, alpha), exact_bound(won, lost, n, alpha))


@lru_cache(maxsize=4096)
def exact_bound(lost: int, won: int, n: int, alpha: float, first: float = math.nan) -> float:
    """What (lost - won) / n in truth lies below, one-sided at `alpha`, to a hundredth of a point.

    `first` is tried first: the bound lies on the side of it that the test at `first` says.
    """
    low, high = (lost - won) / n, 1.0
    middle = first if low < first < high else (low + high) / 2
    while high - low > 1e-4:
        if exact_p(lost, won, n, -middle) < alpha:
            high = middle
        else:
            low = middle
        middle = (low + high) / 2
    return high


@lru_cache(maxsize=4096)
def exact_p(lost: int, won: int, n: int, difference: float) -> float:
    """Exact p of "the difference is `difference` or less", whatever the rate of flips.

    The unconditional test ordered by the score statistic (Sidik 2003), at its worst over a confidence interval of the
    rate of winning (Berger & Boos 1994); conditioning on the flips would not do, for at a difference other than 0
    their number is no ancillary.
    """
    rates = _nuisance(won, n, difference)
    spread = 6 * np.sqrt(n * rates * (1 - rates)) + 10
    first, last = max(0, int((n * rates - spread).min())), min(n, math.ceil((n * rates + spread).max()))
    wins = np.arange(first, last + 1)
    limit = _most_lost(wins, n, difference, float(score_statistic(won, lost, n, difference)))
    p = _tail(wins, limit, n, rates[:, None], (rates - difference)[:, None])
    return min(1.0, float(p.max()) + _NUISANCE)


def _nuisance(won: int, n: int, difference: float, points: int = 32) -> Array:
    """Rates of winning to try: those not excluded by the documents, and possible at this difference."""
    low, high = clopper_pearson(won, n, _NUISANCE / 2)
    least, most = max(0.0, difference), (1 + difference) / 2
    return np.linspace(min(max(low, least), most), max(min(high, most), least), points)


def _most_lost(won: Array, n: int, difference: float, statistic: float) -> Array:
    """For each number of wins, the most losses at which the outcome is still as extreme as `statistic`; -1 if none."""
    low, high = np.full(won.shape, -1), n - won
    while (low < high).any():
        middle = (low + high + 1) // 2
        extreme = score_statistic(won, middle, n, difference) >= statistic - 1e-9
        low, high = np.where(extreme, middle, low), np.where(extreme, high, middle - 1)
    return low


def _tail(won: Array, limit: Array, n: int, p_won: Array, p_lost: Array) -> Array:
    """P(wins = won, losses ≤ limit) summed over `won`, for each pair of rates; losses are binomial given the wins."""
    from scipy.special import bdtr, gammaln, xlog1py, xlogy

    log_mass = gammaln(n + 1) - gammaln(won + 1) - gammaln(n - won + 1)
    mass = np.exp(log_mass + xlogy(won, p_won) + xlog1py(n - won, -p_won))
    rate = np.clip(p_lost / (1 - p_won), 0, 1)
    below = np.where(limit < 0, 0.0, bdtr(np.maximum(limit, 0).astype(float), n - won, rate))
    return np.asarray((mass * below).sum(axis=1))
