"""What a guard says of a candidate, alone and among other guards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from evomerge.guards.flips import clopper_pearson, mcnemar
from evomerge.guards.paired import holm
from evomerge.guards.pairs import Pairs

Outcome = Literal["passed", "refused", "undecided"]
Measure = Literal["loss", "flips", "floor"]

ALPHA = 0.05  # one-sided, of a false pass and of a false refusal each
POWER = 0.80  # to pass a candidate that loses nothing


class Test(NamedTuple):
    """A loss against its tolerance, from both sides."""

    loss: float
    low: float  # the loss is above this,
    high: float  # and below this, each with one-sided error alpha
    within: float  # p of "the tolerance or more": small where shown to lose less
    beyond: float  # p of "within the tolerance": small where shown to lose more
    needed: int | None  # documents that would decide if the loss stays as it was seen

    def moved(self, by: float) -> Test:
        """The same test, its loss counted from another level."""
        return self._replace(loss=self.loss + by, low=self.low + by, high=self.high + by)


@dataclass(frozen=True)
class Verdict:
    """What a guard's documents say of its tolerance; loss is what the parent scores above the candidate.

    Of a budget of flips, loss is the rate of documents lost; of a floor, what the candidate scores below it.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    n: int
    loss: float
    low: float
    high: float
    tolerance: float
    alpha: float
    p_pass: float  # of "the loss is the tolerance or more"
    p_refuse: float  # of "the loss is within the tolerance"
    negative_flips: int  # of a floor: documents below it
    positive_flips: int
    needed: int | None  # documents that would decide if the loss is what it looks like; None when decided, or when none would
    measure: Measure = "loss"
    flip_bound: float | None = None  # the rate of negative flips is below this (Clopper-Pearson, one-sided alpha)
    mcnemar_p: float | None = None  # exact and two-sided, of "as many won as lost"
    p_holm: float | None = None  # p_refuse among several guards
    chance_flips: float | None = None  # rate of flips that guessing alone makes, where the number of choices is known

    @property
    def adjusted_flips(self) -> float | None:
        """Rate of negative flips without those of guessing."""
        return None if self.chance_flips is None else max(0.0, self.negative_flips / self.n - self.chance_flips)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `verdict.json`."""
        return {**asdict(self), "reasons": list(self.reasons), "adjusted_flips": self.adjusted_flips}


def verdict_of(measure: Measure, pairs: Pairs, tolerance: float, test: Test, alpha: float) -> Verdict:
    """The verdict of a test on these pairs."""
    outcome: Outcome = "passed" if test.within < alpha else "refused" if test.beyond < alpha else "undecided"
    flips = measure != "floor"
    return Verdict(
        outcome=outcome,
        reasons=(_reason(measure, outcome, pairs.n, tolerance, test),),
        n=pairs.n,
        loss=test.loss,
        low=test.low,
        high=test.high,
        tolerance=tolerance,
        alpha=alpha,
        p_pass=test.within,
        p_refuse=test.beyond,
        negative_flips=pairs.lost,
        positive_flips=pairs.won,
        needed=test.needed if outcome == "undecided" else None,
        measure=measure,
        flip_bound=clopper_pearson(pairs.lost, pairs.n, alpha).high if flips else None,
        mcnemar_p=mcnemar(pairs.lost, pairs.won) if flips else None,
    )


def overall(verdicts: Iterable[Verdict]) -> Outcome:
    """Refused by one is refused, and only what every guard passes has passed."""
    outcomes = {verdict.outcome for verdict in verdicts}
    return "refused" if "refused" in outcomes else "undecided" if "undecided" in outcomes else "passed"


def together(verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Several guards of one candidate: a refusal must stand after Holm over all of them, or it is undecided.

    Passing all needs no correction for their number: a candidate that should fail must slip through its own guard.
    """
    adjusted = holm([verdict.p_refuse for verdict in verdicts.values()])
    return {name: _corrected(v, p, len(verdicts)) for (name, v), p in zip(verdicts.items(), adjusted, strict=True)}


def _corrected(verdict: Verdict, p: float, guards: int) -> Verdict:
    verdict = replace(verdict, p_holm=p)
    if verdict.outcome != "refused" or p < verdict.alpha:
        return verdict
    from scipy.special import ndtri

    times = (reach(verdict.alpha / guards, POWER) / -float(ndtri(verdict.p_refuse))) ** 2
    needed = max(verdict.n + 1, math.ceil(verdict.n * times))
    reason = f"{verdict.reasons[0]}: not beyond doubt among {guards} guards (Holm p {p:.3f}), about {needed:,} documents would be"
    return replace(verdict, outcome="undecided", reasons=(reason,), needed=needed)


def reach(alpha: float, power: float) -> float:
    """z_alpha + z_power, each rounded up at the fourth decimal as printed tables do: never a document too few."""
    from scipy.special import ndtri

    return sum(math.ceil(float(ndtri(1 - p)) * 1e4) / 1e4 for p in (alpha, 1 - power))


def _reason(measure: Measure, outcome: Outcome, n: int, tolerance: float, test: Test) -> str:
    bounds = f"({100 * test.low:.1f} to {100 * test.high:.1f})"
    side = "below" if test.loss > 0 else "above"
    seen = {
        "loss": f"loses {100 * test.loss:.1f} points {bounds} where {100 * tolerance:.1f} are allowed",
        "flips": f"turns {100 * test.loss:.1f} % of the documents wrong {bounds} where {100 * tolerance:.1f} % are allowed",
        "floor": f"scores {100 * abs(test.loss):.1f} points {side} its floor (loss {bounds[1:-1]})",
    }[measure]
    if outcome != "undecided":
        return seen
    return f"{seen}: {n:,} documents cannot tell" + (f", about {test.needed:,} would" if test.needed else "")
