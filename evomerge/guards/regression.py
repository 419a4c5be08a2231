"""A guard's decision: has a task lost more than its tolerance, or can these documents not tell?"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from evomerge.errors import GuardError
from evomerge.guards.flips import exact_bound, exact_p
from evomerge.guards.pairs import Clusters, Pairs, Values, pair
from evomerge.guards.verdict import ALPHA, POWER, Test, Verdict, reach, verdict_of

DISCORDANCE = 0.10  # assumed share of documents that flip, before any was seen


def decide(
    parent: Values,
    candidate: Values,
    tolerance: float,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    clusters: Clusters | None = None,
) -> Verdict:
    """Test the loss of accuracy against the tolerance from both sides, on the candidate's documents.

    passed: shown to lose less than the tolerance. refused: shown to lose more. undecided: neither, whichever side of the
    tolerance the loss looks to be on; a refusal is a claim too, and a candidate at its tolerance meets it once in twenty.
    Both errors are alpha at most: exactly, for 0/1 scores.
    """
    pairs = pair(candidate, parent, clusters)
    return verdict_of("loss", pairs, tolerance, loss_test(pairs, tolerance, alpha, power), alpha)


def loss_test(pairs: Pairs, tolerance: float, alpha: float, power: float) -> Test:
    """The loss of these pairs against a tolerance: exact for 0/1 scores, by t where they are graded or clustered."""
    p = _p_values(pairs, tolerance)
    bounds = _bounds(pairs, tolerance, alpha)
    return Test(-pairs.difference, *bounds, p.within, p.beyond, _needed(pairs, tolerance, alpha, power))


def constraint(parent: Values, candidate: Values, tolerance: float) -> float:
    """What the sampler is told of a guard: the estimated loss above the tolerance, feasible at 0 or below."""
    return -pair(candidate, parent).difference - tolerance


def clearly_violated(
    parent: Values, candidate: Values, tolerance: float, *, alpha: float = ALPHA, clusters: Clusters | None = None
) -> bool:
    """Whether the loss is already shown to be above the tolerance: a reason to stop racing."""
    return constraint(parent, candidate, tolerance) > 0 and _p_values(pair(candidate, parent, clusters), tolerance).beyond < alpha


def documents_needed(margin: float, discordance: float = DISCORDANCE, alpha: float = ALPHA, power: float = POWER) -> int:
    """Documents that pass a candidate which loses nothing, with this power: (z_alpha + z_power)² · discordance / margin²."""
    if not margin > 0:
        raise GuardError(f"guard: a tolerance of {margin:g} cannot be decided by any number of documents; give one above 0")
    return math.ceil(reach(alpha, power) ** 2 * discordance / margin**2 - 1e-9)


def smallest_margin(n: int, discordance: float = DISCORDANCE, alpha: float = ALPHA, power: float = POWER) -> float:
    """The tightest tolerance that `n` documents can decide."""
    return reach(alpha, power) * math.sqrt(discordance / n)


def require_documents(
    task: str, n: int, tolerance: float, *, discordance: float = DISCORDANCE, alpha: float = ALPHA, power: float = POWER
) -> None:
    """Refuse, before the night, a guard that its sealed documents cannot decide."""
    needed = documents_needed(tolerance, discordance, alpha, power)
    if n >= needed:
        return
    widest = math.ceil(smallest_margin(n, discordance, alpha, power) * 1000) / 1000 if n else 1.0
    raise GuardError(
        f"guard.tasks.{task}: {n:,} sealed documents cannot decide a tolerance of {tolerance:g}, {needed:,} would "
        f"({discordance:.0%} discordance, power {power:.0%}, one-sided {alpha:.0%}); "
        f"raise guard.sealed, or the tolerance to {widest:g}"
    )


class _P(NamedTuple):
    within: float  # small: shown to lose less than the tolerance
    beyond: float  # small: shown to lose more


def _p_values(pairs: Pairs, tolerance: float) -> _P:
    if pairs.counts:
        within = exact_p(pairs.lost, pairs.won, pairs.n, -tolerance)
        return _P(within, exact_p(pairs.won, pairs.lost, pairs.n, tolerance))
    return _P(_graded(pairs).p(-tolerance), _graded(pairs.swapped).p(tolerance))


def _bounds(pairs: Pairs, tolerance: float, alpha: float) -> tuple[float, float]:
    """Low and high of the loss: where the tests above turn."""
    if pairs.counts:
        high = exact_bound(pairs.lost, pairs.won, pairs.n, alpha, tolerance)
        return -exact_bound(pairs.won, pairs.lost, pairs.n, alpha, -tolerance), high
    return _graded(pairs.swapped).low(alpha), -_graded(pairs).low(alpha)


class _Graded(NamedTuple):
    """A lower bound of the difference from graded or clustered scores, by t."""

    difference: float
    se: float
    df: int

    def p(self, difference: float) -> float:
        from scipy.special import stdtr

        return float(stdtr(self.df, (difference - self.difference) / self.se))

    def low(self, alpha: float) -> float:
        from scipy.special import stdtrit

        return self.difference - float(stdtrit(self.df, 1 - alpha)) * self.se


def _graded(pairs: Pairs) -> _Graded:
    """t with two documents added that lose all they can: rare losses not yet met must not pass for none."""
    g, size = len(pairs.sizes), float(pairs.sizes.mean())
    delta = np.append(pairs.delta, [-size * pairs.reach] * 2)
    sizes = np.append(pairs.sizes, [size] * 2)
    difference = float(delta.sum() / sizes.sum())
    residual = delta - sizes * difference
    return _Graded(difference, float(np.sqrt((residual**2).sum() * (g + 2) / (g + 1)) / sizes.sum()), max(g - 1, 1))


def _needed(pairs: Pairs, tolerance: float, alpha: float, power: float) -> int | None:
    """Documents that would decide if loss and flips stay as they were seen (and at least one document flips)."""
    gap = tolerance + pairs.difference
    if gap == 0:
        return None
    variance = max(pairs.variance * pairs.n, 1 / pairs.n)
    return max(pairs.n + 1, math.ceil(reach(alpha, power) ** 2 * variance / gap**2))
