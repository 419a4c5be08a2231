"""A guard's decision: has a task lost more than its tolerance, or can these documents not tell?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from evomerge.errors import GuardError
from evomerge.guards.flips import exact_bound, exact_p
from evomerge.guards.pairs import Clusters, Pairs, Values, pair

Outcome = Literal["passed", "refused", "undecided"]

ALPHA = 0.05  # one-sided, of a false pass and of a false refusal each
POWER = 0.80  # to pass a candidate that loses nothing
DISCORDANCE = 0.10  # assumed share of documents that flip, before any was seen


@dataclass(frozen=True)
class Verdict:
    """What a guard's documents say of its tolerance; loss is what the parent scores above the candidate."""

    outcome: Outcome
    reasons: tuple[str, ...]
    n: int
    loss: float
    low: float  # the loss is above this,
    high: float  # and below this, each with one-sided error alpha
    tolerance: float
    alpha: float
    p_pass: float  # of "the loss is the tolerance or more"
    p_refuse: float  # of "the loss is within the tolerance"
    negative_flips: int
    positive_flips: int
    needed: int | None  # documents that would decide if the loss is what it looks like; None when decided, or when none would

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `verdict.json`."""
        return {**asdict(self), "reasons": list(self.reasons)}


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
    p = _p_values(pairs, tolerance)
    outcome: Outcome = "passed" if p.within < alpha else "refused" if p.beyond < alpha else "undecided"
    low, high = _bounds(pairs, tolerance, alpha)
    needed = _needed(pairs, tolerance, alpha, power) if outcome == "undecided" else None
    return Verdict(
        outcome=outcome,
        reasons=(_reason(outcome, pairs, low, high, tolerance, needed),),
        n=pairs.n,
        loss=-pairs.difference,
        low=low,
        high=high,
        tolerance=tolerance,
        alpha=alpha,
        p_pass=p.within,
        p_refuse=p.beyond,
        negative_flips=pairs.lost,
        positive_flips=pairs.won,
        needed=needed,
    )


def overall(verdicts: Iterable[Verdict]) -> Outcome:
    """Refused by one is refused, and only what every guard passes has passed.

    Passing all needs no correction for their number: a candidate that should fail must slip through its own guard.
    """
    outcomes = {verdict.outcome for verdict in verdicts}
    return "refused" if "refused" in outcomes else "undecided" if "undecided" in outcomes else "passed"


def constraint(parent: Values, candidate: Values, tolerance: float) -> float:
    """What the sampler is told of a guard: the estimated loss above the tolerance, feasible at 0 or below."""
    return -pair(candidate, parent).difference - tolerance


def clearly_violated(parent: Values, candidate: Values, tolerance: float, *, alpha: float = ALPHA) -> bool:
    """Whether the loss is already shown to be above the tolerance: a reason to stop racing."""
    return constraint(parent, candidate, tolerance) > 0 and _p_values(pair(candidate, parent), tolerance).beyond < alpha


def documents_needed(margin: float, discordance: float = DISCORDANCE, alpha: float = ALPHA, power: float = POWER) -> int:
    """Documents that pass a candidate which loses nothing, with this power: (z_alpha + z_power)² · discordance / margin²."""
    if not margin > 0:
        raise GuardError(f"guard: a tolerance of {margin:g} cannot be decided by any number of documents; give one above 0")
    return math.ceil(_reach(alpha, power) ** 2 * discordance / margin**2 - 1e-9)


def smallest_margin(n: int, discordance: float = DISCORDANCE, alpha: float = ALPHA, power: float = POWER) -> float:
    """The tightest tolerance that `n` documents can decide."""
    return _reach(alpha, power) * math.sqrt(discordance / n)


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
    return max(pairs.n + 1, math.ceil(_reach(alpha, power) ** 2 * variance / gap**2))


def _reason(outcome: Outcome, pairs: Pairs, low: float, high: float, tolerance: float, needed: int | None) -> str:
    loss = -100 * pairs.difference
    seen = f"loses {loss:.1f} points ({100 * low:.1f} to {100 * high:.1f}) where {100 * tolerance:.1f} are allowed"
    if outcome != "undecided":
        return seen
    return f"{seen}: {pairs.n:,} documents cannot tell" + (f", about {needed:,} would" if needed else "")


def _reach(alpha: float, power: float) -> float:
    """z_alpha + z_power, each rounded up at the fourth decimal as printed tables do: never a document too few."""
    from scipy.special import ndtri

    return sum(math.ceil(float(ndtri(1 - p)) * 1e4) / 1e4 for p in (alpha, 1 - power))
