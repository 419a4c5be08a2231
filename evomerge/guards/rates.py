"""A rate against its budget: how many documents may be lost, how many may be wrong, and how many flips are guesses."""

from __future__ import annotations

import math

from evomerge.errors import GuardError
from evomerge.guards.flips import clopper_pearson
from evomerge.guards.pairs import Clusters, Values, lost_documents, pair
from evomerge.guards.regression import loss_test
from evomerge.guards.verdict import ALPHA, POWER, Test, Verdict, verdict_of


def decide_flips(
    parent: Values,
    candidate: Values,
    budget: float,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    clusters: Clusters | None = None,
) -> Verdict:
    """Test the rate of negative flips against a budget: by Clopper-Pearson, or by t where documents share a context."""
    pairs = pair(candidate, parent, clusters)
    if pairs.clustered:
        test = loss_test(lost_documents(candidate, parent, clusters), budget, alpha, power)
    else:
        test = rate_test(pairs.lost, pairs.n, budget, alpha, power)
    return verdict_of("flips", pairs, budget, test, alpha)


def decide_floor(
    candidate: Values, floor: float, *, alpha: float = ALPHA, power: float = POWER, clusters: Clusters | None = None
) -> Verdict:
    """Test the candidate's mean against a floor that no parent sets: exactly for 0/1 scores, else by t."""
    pairs = pair(candidate, dict.fromkeys(candidate, floor), clusters)
    if set(candidate.values()) <= {0.0, 1.0} and 0 < floor < 1 and not pairs.clustered:
        wrong = sum(value == 0 for value in candidate.values())
        test = rate_test(wrong, pairs.n, 1 - floor, alpha, power).moved(floor - 1)
    else:
        test = loss_test(pairs, 0.0, alpha, power)
    return verdict_of("floor", pairs, 0.0, test, alpha)


def require_flips(task: str, n: int, budget: float, alpha: float = ALPHA) -> None:
    """Refuse, before the night, a budget of flips that its sealed documents could not pass even if none flipped."""
    needed = math.ceil(math.log(alpha) / math.log1p(-budget)) if 0 < budget < 1 else math.inf
    if n < needed:
        would = f"{needed:,} would" if budget > 0 else "no number would"
        raise GuardError(
            f"guard.tasks.{task}: {n:,} sealed documents cannot pass a budget of {budget:g} even if none flips, {would}; "
            "raise guard.sealed or the budget"
        )


def flips_needed(budget: float, rate: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Documents that pass a candidate which turns `rate` of them wrong, with this power (normal approximation)."""
    if not 0 <= rate < budget <= 1:
        raise GuardError(
            f"guard: a rate of {rate:g} cannot be shown to lie below a budget of {budget:g} by any number of documents"
        )
    return _enough(budget, rate, alpha, power)


def rate_test(count: int, n: int, budget: float, alpha: float, power: float) -> Test:
    """Exact test of `count` in n against a rate; it and Clopper-Pearson's bounds agree."""
    from scipy.special import bdtr, bdtrc

    bounds = clopper_pearson(count, n, alpha)
    beyond = float(bdtrc(count - 1, n, budget)) if count else 1.0  # P(Bin(n, budget) ≥ count)
    return Test(count / n, *bounds, float(bdtr(count, n, budget)), beyond, _needed(count, n, budget, alpha, power))


def _needed(count: int, n: int, budget: float, alpha: float, power: float) -> int | None:
    """Documents that would decide if the rate stays as it was seen; never fewer than no flip at all would take."""
    rate = count / n
    return None if rate == budget else max(n + 1, _enough(budget, rate, alpha, power))


def _enough(budget: float, rate: float, alpha: float, power: float) -> int:
    from scipy.special import ndtri

    spread = float(ndtri(1 - alpha)) * math.sqrt(budget * (1 - budget)) + float(ndtri(power)) * math.sqrt(rate * (1 - rate))
    without_any = math.log(alpha) / math.log1p(-budget) if rate < budget < 1 else 0.0
    return math.ceil(max((spread / (budget - rate)) ** 2, without_any))


def chance_flips(before: float, after: float, choices: int) -> float:
    """Rate of right-to-wrong flips that guessing alone makes among `choices` answers, given both models' accuracies.

    A model that knows a share k and guesses the rest scores k + (1 - k)/c, so (1 - accuracy)·c/(c - 1) is unknown to it; what
    is unknown to both is at most the lesser of the two, and a guess right before is wrong after with (1/c)(1 - 1/c). An
    approximation: the exact form is in arXiv 2510.17776.
    """
    if choices < 2:
        raise GuardError(f"guard: {choices} choice leaves nothing to guess; give 2 or more, or leave `choices` out")
    unknown = min(1.0, min(1 - before, 1 - after) * choices / (choices - 1))
    return unknown * (1 / choices) * (1 - 1 / choices)
