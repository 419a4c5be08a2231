"""Who goes on to the next rung: asynchronous successive halving, each decided at once against all that came before."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from evomerge.study.pareto import dominates

Reason = Literal["baseline", "finished", "ahead", "behind", "guard"]

JUST_BELOW = 1e-6  # between a survivor and a trial stopped behind it, in units of the score


@dataclass(frozen=True)
class Arrival:
    """A trial has been estimated on the documents of a rung; `violated` when a guard is clearly broken there."""

    trial: Hashable
    rung: int
    value: float
    baseline: bool = False
    violated: bool = False
    healed: bool = False  # healed candidates compete with healed ones: an unhealed form says little of what healing makes of it
    eta: float | None = None  # one in `eta` goes on; None: the race's own
    values: Sequence[float] | None = None  # several objectives, more is better: fewer that dominate it take the place of `value`

    @property
    def standing(self) -> float:
        """What it competes with: a trial that breaks a guard stands behind all others."""
        return -math.inf if self.violated else self.value


@dataclass(frozen=True)
class Decision:
    """Whether a trial goes on, and what its sampler is told if it does not."""

    goes_on: bool
    reason: Reason
    told: float | None = None  # None as long as it goes on


class Race:
    """The rungs of a study and all who reached them; its state is a function of the arrivals, in their order.

    The stopping variant of ASHA (Li et al. 2020): at each rung the top 1/eta of those that reached it so far goes on, at
    once and for good. Of fewer than eta the best goes on, and ties go on. Baselines never stop, and count among those
    that reached a rung: with them in front, the first trial already has somebody to beat.
    """

    def __init__(self, rungs: int, eta: float = 4.0, arrivals: Iterable[Arrival] = ()) -> None:
        if rungs < 1 or not eta >= 1:
            raise ValueError(f"a race needs a rung or more and eta of 1 or above, not {rungs} and {eta}")
        self.rungs, self.eta = rungs, eta
        self.arrivals: list[Arrival] = []
        self._survivors: defaultdict[tuple[int, bool], set[Hashable]] = defaultdict(set)  # of a rung, healed or not
        self._told: dict[Hashable, float] = {}
        self._arrived: Counter[Hashable] = Counter()  # at how many rungs each has arrived
        for arrival in arrivals:
            self.arrive(arrival)

    def arrive(self, arrival: Arrival) -> Decision:
        """Take note of an arrival and decide; a trial arrives once at each rung, from the first up, until it is told."""
        before = self._arrived[arrival.trial]
        done = before == self.rungs or arrival.trial in self._told
        if done or arrival.rung != before or not math.isfinite(arrival.value):
            raise ValueError(
                f"trial {arrival.trial} cannot arrive at rung {arrival.rung} with {arrival.value} as its arrival {before}"
            )
        self._keep(arrival)
        decision = self._decide(arrival)
        self._note(arrival, decision)
        return decision

    def restore(self, arrival: Arrival, decision: Decision) -> None:
        """Take note of an arrival and of what was decided then, in the order of the record."""
        self._keep(arrival)
        self._note(arrival, decision)

    def _keep(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)
        self._arrived[arrival.trial] += 1

    def _note(self, arrival: Arrival, decision: Decision) -> None:
        if decision.reason == "ahead":
            self._survivors[arrival.rung, arrival.healed].add(arrival.trial)
        if decision.told is not None:
            self._told[arrival.trial] = decision.told

    def told_value(self, arrival: Arrival) -> float:
        """What the sampler is told: the estimate; of a stopped trial at most just below the lowest survivor told so far.

        Its own estimate comes from few documents and may be lucky; a survivor's, from more, came down to earth. Survivors
        are trials that went on from this rung; baselines, which go on whatever they score, are none. Trials held down by
        the same survivor keep their order: the gap is 1 to 3 times `JUST_BELOW`, less for the better.
        """
        value, rung = arrival.value, self._survivors[arrival.rung, arrival.healed]
        survivors = [self._told[trial] for trial in rung if trial in self._told]
        if not survivors:
            return value
        return min(value, min(survivors) - JUST_BELOW * (2 - value / (1 + abs(value))))

    def _decide(self, arrival: Arrival) -> Decision:
        last = arrival.rung == self.rungs - 1
        if arrival.baseline:
            return Decision(not last, "baseline", arrival.value if last else None)
        if arrival.violated:
            return Decision(False, "guard", self.told_value(arrival))
        if last:
            return Decision(False, "finished", arrival.value)
        if self._ahead(arrival):
            return Decision(True, "ahead")
        return Decision(False, "behind", self.told_value(arrival))

    def _ahead(self, arrival: Arrival) -> bool:
        there = [a for a in self.arrivals if (a.rung, a.healed) == (arrival.rung, arrival.healed)]
        reached = [a.standing for a in there] if arrival.values is None else _undominated(there)
        standing = arrival.standing if arrival.values is None else reached[there.index(arrival)]
        better = sum(other > standing for other in reached)
        return better < max(1, math.floor(len(reached) / (arrival.eta or self.eta)))


def _undominated(arrivals: Sequence[Arrival]) -> list[float]:
    """Minus the number of arrivals that dominate each; one that breaks a guard dominates nobody and stands behind all."""
    sound = [a.values for a in arrivals if a.values is not None and not a.violated]
    return [
        -math.inf if a.violated or a.values is None else -float(sum(dominates(other, a.values) for other in sound))
        for a in arrivals
    ]
