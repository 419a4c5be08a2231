"""The guards of an experiment, one number each: what is measured, its limit, and against whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evomerge.guards.pairs import Clusters, Values, pair
from evomerge.guards.rates import chance_flips, decide_flips, decide_floor, require_flips
from evomerge.guards.regression import clearly_violated, constraint, decide, require_documents
from evomerge.guards.verdict import Measure, Verdict, together
from evomerge.scoring.bound import Bound
from evomerge.scoring.scores import Scores
from evomerge.scoring.suite import GuardConfig


@dataclass(frozen=True)
class Criterion:
    """One limit on one guard task."""

    task: str
    measure: Measure
    limit: float  # a floor is in the units of rows, where more is always better
    against: str = "base"
    choices: int | None = None

    @property
    def name(self) -> str:
        return self.task if self.measure == "loss" else f"{self.task} {self.measure}"

    def excess(self, parent: Values, candidate: Values, share: float = 1.0) -> float:
        """The estimate above this share of the limit; kept at 0 or below."""
        if self.measure == "floor":
            return self.limit - sum(candidate.values()) / len(candidate)
        if self.measure == "flips":
            pairs = pair(candidate, parent)
            return pairs.lost / pairs.n - share * self.limit
        return constraint(parent, candidate, share * self.limit)

    def broken(self, parent: Values, candidate: Values, clusters: Clusters | None = None) -> bool:
        """Whether the limit is already shown to be broken: a reason to stop racing."""
        if self.excess(parent, candidate) <= 0:
            return False
        if self.measure == "loss":
            return clearly_violated(parent, candidate, self.limit, clusters=clusters)
        if self.measure == "flips":
            return decide_flips(parent, candidate, self.limit, clusters=clusters).outcome == "refused"
        return decide_floor(candidate, self.limit, clusters=clusters).outcome == "refused"

    def decide(self, parent: Values, candidate: Values, clusters: Clusters | None = None) -> Verdict:
        """What these documents say of the limit."""
        if self.measure == "floor":
            return decide_floor(candidate, self.limit, clusters=clusters)
        test = decide_flips if self.measure == "flips" else decide
        verdict = test(parent, candidate, self.limit, clusters=clusters)
        if self.choices is None:
            return verdict
        before, after = (sum(values[doc] for doc in candidate) / len(candidate) for values in (parent, candidate))
        return replace(verdict, chance_flips=chance_flips(before, after, self.choices))


def criteria(guard: GuardConfig) -> tuple[Criterion, ...]:
    """Every limit of the experiment's guard tasks."""
    return tuple(one for task, bound in guard.tasks.items() for one in _of(task, Bound.of(bound)))


def _of(task: str, bound: Bound) -> list[Criterion]:
    floor = bound.floor if bound.ceiling is None else -bound.ceiling
    limits: list[tuple[Measure, float | None]] = [("loss", bound.loss), ("flips", bound.flips), ("floor", floor)]
    return [Criterion(task, measure, limit, bound.against, bound.choices) for measure, limit in limits if limit is not None]


def opponents(found: Sequence[Criterion], parents: Mapping[str, Scores]) -> dict[str, str]:
    """The parent that each guard task is compared with: the base, or the best at it on the documents of these scores."""
    best = {one.task: max(parents, key=lambda name: parents[name].mean(one.task)) for one in found if one.against == "best"}
    return {one.task: best.get(one.task, "base") for one in found}


def reference(opponents: Mapping[str, str], parents: Mapping[str, Scores]) -> Scores:
    """The rows that guards compare with, each task's from its own parent."""
    return Scores.of(row for task, name in opponents.items() for row in parents[name].task(task).values())


def verdicts(found: Sequence[Criterion], parent: Scores, candidate: Scores) -> dict[str, Verdict]:
    """Every guard's verdict on the candidate's documents, corrected for their number; what documents share is in the rows."""
    known = {c.name: (parent.values(c.task), candidate.values(c.task), candidate.clusters(c.task)) for c in found}
    return together({c.name: c.decide(*known[c.name]) for c in found})


def refuse_undecidable(guard: GuardConfig, sealed: Mapping[str, Sequence[int]]) -> None:
    """Raises GuardError where a guard's sealed documents are too few for its own limit."""
    for one in criteria(guard):
        documents = len(sealed[one.task])
        if one.measure == "loss":
            require_documents(one.task, documents, one.limit, discordance=guard.discordance)
        elif one.measure == "flips":
            require_flips(one.task, documents, one.limit)
