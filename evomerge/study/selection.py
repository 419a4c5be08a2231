"""The end of a study: a few finalists are scored on fresh documents, one is chosen, written, read back and certified.

Searching, choosing and certifying use documents of their own: the best of many looks better than it is on whatever chose it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.guards.aggregate import aggregate
from evomerge.guards.criteria import criteria, verdicts
from evomerge.guards.paired import Comparison, compare_tasks, holm
from evomerge.guards.verdict import Verdict
from evomerge.scoring.scores import Scores
from evomerge.study.estimate import Estimate
from evomerge.study.experiment import Experiment
from evomerge.study.trial import Outcome

Ending = Literal[0, 3, 4, 5]
ENDINGS: dict[int, str] = {
    0: "better and certified",
    3: "keep your parent",
    4: "refused by a guard",
    5: "undecided",
}
ALPHA = 0.05
BEHIND = 3.0  # standard errors: one baseline in seven hundred is passed over wrongly


@dataclass(frozen=True)
class Contender:
    """A finalist, parent or baseline with its scores on the select documents."""

    name: str
    scores: Scores
    outcome: Outcome | None = None


def finalists(outcomes: Sequence[Outcome], most: int) -> list[Outcome]:
    """The best feasible candidates that no race stopped, each recipe once; those that climbed highest before all others."""
    reached = [o for o in outcomes if o.standing]
    ranked = sorted(reached, key=lambda o: (-o.rung, -_objective(o)))
    found: dict[str, Outcome] = {}
    for outcome in ranked:
        if len(found) == most:
            break
        found.setdefault(outcome.recipe.key(), outcome)
    return list(found.values())


def _objective(outcome: Outcome) -> float:
    """What the search made it compete with."""
    if outcome.told is not None:
        return outcome.told
    return outcome.estimate.value if outcome.estimate else 0.0


def contending(baselines: Sequence[Outcome]) -> list[Outcome]:
    """The baselines that may be the best of their kind, merges alone or with more than a merge: on search documents their mean
    skill is not yet behind that kind's best by three standard errors."""
    kinds = ([o for o in baselines if merges_only(o) is kind] for kind in (True, False))
    return [outcome for kind in kinds for outcome in _within_reach(kind)]


def merges_only(outcome: Outcome) -> bool:
    """Whether the recipe neither extends the context nor heals."""
    return outcome.recipe.context is None and outcome.recipe.heal is None


def _within_reach(outcomes: Sequence[Outcome]) -> list[Outcome]:
    known = [(outcome, *_mean_skill(outcome.estimate)) for outcome in outcomes if outcome.estimate]
    _, best, best_se = max(known, key=lambda entry: entry[1], default=(None, 0.0, 0.0))
    return [outcome for outcome, mean, se in known if best - mean <= BEHIND * math.hypot(best_se, se)]


def _mean_skill(estimate: Estimate) -> tuple[float, float]:
    """Plain mean of the tasks and its standard error: of the other aggregates, those near 0 are too uncertain to pass over."""
    tasks = estimate.tasks.values()
    return sum(task.mean for task in tasks) / len(tasks), math.hypot(*(task.se for task in tasks)) / len(tasks)


class Judge:
    """The experiment's own measure, applied to any scores."""

    def __init__(self, experiment: Experiment, references: Mapping[str, float] | None) -> None:
        self.experiment, self.references = experiment, references
        self.weights = dict(experiment.suite.tasks)

    def value(self, scores: Scores, kind: str | None = None) -> float:
        """The suite's aggregate of the target tasks."""
        means = {task: scores.mean(task) for task in self.weights}
        return float(aggregate(means, kind or self.experiment.suite.aggregate, self.weights, self.references))

    def mean_skill(self, scores: Scores) -> float:
        """The plain mean of the target tasks: what anybody can check by hand."""
        return self.value(scores, "mean") if len(set(self.weights.values())) == 1 else _plain_mean(scores, self.weights)

    def compare(self, candidate: Scores, reference: Scores) -> Comparison:
        return compare_tasks(
            {task: candidate.values(task) for task in self.weights},
            {task: reference.values(task) for task in self.weights},
            kind=self.experiment.suite.aggregate,
            weights=self.weights,
            references=self.references,
            seed=self.experiment.search.seed,
        )

    def guards(self, candidate: Scores, opponent: Scores) -> dict[str, Verdict]:
        """Every guard's verdict, against the rows of the parent that its task is compared with."""
        return verdicts(criteria(self.experiment.guard), opponent, candidate)

    def keeps_guards(self, candidate: Scores, opponent: Scores) -> bool:
        """On the select documents: no guard loses more than its tolerance, as far as they can tell."""
        return all(
            one.excess(opponent.values(one.task), candidate.values(one.task)) <= 0 for one in criteria(self.experiment.guard)
        )


def choose(contenders: Sequence[Contender], opponent: Scores, judge: Judge) -> Contender | None:
    """The finalist that is best on select among those that keep the guards there; None where none does."""
    kept = [contender for contender in contenders if judge.keeps_guards(contender.scores, opponent)]
    return max(kept, key=lambda contender: judge.value(contender.scores), default=None)


def rivals(baselines: Sequence[Contender], judge: Judge) -> list[str]:
    """The baselines to be compared with: the best on select by the suite's aggregate, by the plain mean of the tasks, and by
    the plain mean among those that neither extend the context nor heal."""
    merged = [c for c in baselines if c.outcome is None or merges_only(c.outcome)]
    fields = ((judge.value, baselines), (judge.mean_skill, baselines), (judge.mean_skill, merged))
    best = [max(field, key=lambda contender: measure(contender.scores)).name for measure, field in fields if field]
    return list(dict.fromkeys(best))


@dataclass(frozen=True)
class Decision:
    """How a study ends, and why."""

    ending: Ending
    reasons: tuple[str, ...]
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    adjusted: Mapping[str, float] = field(default_factory=dict)  # Holm over the comparisons: p of "no better than"
    guards: Mapping[str, Verdict] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        return {
            "ending": self.ending,
            "verdict": ENDINGS[self.ending],
            "reasons": list(self.reasons),
            "comparisons": {
                name: {**comparison.to_dict(), "p_holm": self.adjusted[name]} for name, comparison in self.comparisons.items()
            },
            "guards": {task: verdict.to_dict() for task, verdict in self.guards.items()},
        }


def decide_ending(comparisons: Mapping[str, Comparison], guards: Mapping[str, Verdict]) -> Decision:
    """The first that applies: a guard refused, a rival at least as good, something undecided, better and certified."""
    adjusted = dict(zip(comparisons, holm([c.p_greater for c in comparisons.values()]), strict=True))
    refused = [f"guard {task}: {' '.join(verdict.reasons)}" for task, verdict in guards.items() if verdict.outcome == "refused"]
    behind = [
        f"not above {name} on sealed documents ({c.difference:+.4f})" for name, c in comparisons.items() if c.difference <= 0
    ]
    unsure = [
        f"against {name}: {c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}], Holm-adjusted p {adjusted[name]:.3f}; "
        f"about {_documents_to_decide(c)} sealed documents would decide"
        for name, c in comparisons.items()
        if c.difference > 0 and adjusted[name] >= ALPHA
    ]
    unsure += [f"guard {task}: {' '.join(verdict.reasons)}" for task, verdict in guards.items() if verdict.outcome == "undecided"]
    better = [f"above {name} by {c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}]" for name, c in comparisons.items()]
    cases: list[tuple[Ending, list[str]]] = [(4, refused), (3, behind), (5, unsure), (0, better or ["nothing to compare with"])]
    ending, reasons = next((ending, reasons) for ending, reasons in cases if reasons)
    return Decision(ending, tuple(reasons), comparisons, adjusted, guards)


def _documents_to_decide(comparison: Comparison) -> int:
    """Documents at which a difference of this size would reach one-sided 5 % with power 80 %: n ((z₁ + z₂) se / d)²."""
    z = 1.6449 + 0.8416
    return max(comparison.n + 1, round(comparison.n * (z * comparison.se / comparison.difference) ** 2))


def _plain_mean(scores: Scores, tasks: Mapping[str, float]) -> float:
    return sum(scores.mean(task) for task in tasks) / len(tasks)
