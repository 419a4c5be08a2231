"""One recipe's life: it climbs the rungs, only new documents are scored at each, and the race says whether it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from evomerge.guards.criteria import Criterion, criteria, opponents, reference
from evomerge.guards.ledger import Ledger
from evomerge.recipe import Recipe
from evomerge.scoring.scores import Scores
from evomerge.scoring.suite import Splits
from evomerge.study.anytime import Anytime
from evomerge.study.estimate import Estimate, estimate, mean_of
from evomerge.study.executor import Job, Life, Result
from evomerge.study.experiment import Experiment
from evomerge.study.line import steering
from evomerge.study.objectives import PARAMETERS, TARGET, is_less_better, objective_values
from evomerge.study.race import Arrival, Decision, Race

State = Literal["survived", "stopped", "failed"]

# The search aims at half of a tolerance: the best of many had luck with its guard too, and what is at the very edge of a
# tolerance cannot be shown to lie within it, however many documents are sealed.
AIM = 0.5


class Failure(Exception):
    """A job of this trial failed; the message is the reason."""


@dataclass
class Arena:
    """What candidates meet: the parents' scores on every search document, and everyone who has raced so far."""

    experiment: Experiment
    splits: Splits
    race: Race
    parents: dict[str, Scores] = field(default_factory=dict)
    ledger: Ledger | None = None  # of the base's line

    @property
    def base(self) -> Scores:
        return self.parents["base"]

    @property
    def references(self) -> dict[str, float]:
        """The best parent's mean of each target: what `aggregate: relative` is relative to."""
        tasks = self.experiment.suite.tasks
        return {task: max(scores.mean(task) for scores in self.parents.values()) for task in tasks}

    def estimate(self, scores: Scores) -> Estimate:
        """What the candidate would score on the whole search split, from the documents it was scored on."""
        suite = self.experiment.suite
        return estimate(
            {task: scores.values(task) for task in suite.tasks},
            {task: self.base.values(task) for task in suite.tasks},
            kind=suite.aggregate,
            weights=suite.tasks,
            references=self.references if suite.aggregate == "relative" else None,
            wholes=self._wholes,
        )

    @cached_property
    def _wholes(self) -> dict[str, float]:
        """The base's mean of each target; asked for with every estimate."""
        return {task: mean_of(self.base.values(task)) for task in self.experiment.suite.tasks}

    def objectives(self, estimate: Estimate, scores: Scores, distances: Mapping[str, float]) -> dict[str, float]:
        """The value of each of several objectives; nothing where the aggregate is the only one."""
        names = self.experiment.search.objectives
        if names == (TARGET,):
            return {}
        return objective_values(names, estimate, scores, self.base, distances, self.experiment.suite)

    def signed(self, objectives: Mapping[str, float]) -> tuple[float, ...] | None:
        """The same with costs negated: more is better in every place."""
        suite, guard = self.experiment.suite, self.experiment.guard
        return tuple(-v if is_less_better(name, suite, guard) else v for name, v in objectives.items()) or None

    @property
    def anytime(self) -> Anytime:
        return self.experiment.search.anytime or Anytime(drop=False)

    def is_worse(self, scores: Scores) -> bool:
        """Whether documents so far show that the candidate is worse than the parent that `search.anytime` names."""
        order = self.splits.search
        return self.anytime.drop and self.anytime.is_worse(scores, self.parents, self.experiment.suite.tasks, order)

    @cached_property
    def criteria(self) -> tuple[Criterion, ...]:
        if self.ledger is None:
            return criteria(self.experiment.guard)
        return steering(self.experiment.guard, self.experiment.space.build(self.experiment.space.start()).base.model, self.ledger)

    @cached_property
    def opponent(self) -> Scores:
        """What guards compare with: the base, or the parent that is best at the task."""
        return reference(opponents(self.criteria, self.parents), self.parents)

    def constraints(self, scores: Scores, distances: Mapping[str, float]) -> dict[str, float]:
        """One number a guard, 0 or less where it is kept: loss over the part of its tolerance aimed at, distance over its
        limit."""
        over = {c.name: c.excess(self.opponent.values(c.task), scores.values(c.task), AIM) for c in self.criteria}
        return {**over, **self._too_far(distances)}

    def violated(self, scores: Scores, distances: Mapping[str, float]) -> bool:
        """Whether a guard is broken beyond doubt: no more documents are spent on such a candidate."""
        met = ((c, self.opponent.values(c.task), scores.values(c.task), scores.clusters(c.task)) for c in self.criteria)
        broken = any(c.broken(parent, candidate, clusters) for c, parent, candidate, clusters in met)
        return broken or any(over > 0 for over in self._too_far(distances).values())

    def _too_far(self, distances: Mapping[str, float]) -> dict[str, float]:
        limits = self.experiment.guard.distances
        return {name: distances[name] - limit for name, limit in limits.items() if name in distances}


@dataclass(frozen=True)
class Outcome:
    """How a life ended, and what it is worth."""

    name: str
    recipe: Recipe
    state: State = "survived"
    rung: int = -1  # the highest rung whose documents were scored
    scores: Scores = field(default_factory=Scores)
    estimate: Estimate | None = None
    told: float | None = None  # what the sampler hears: the estimate, less what `guard.ewc.weights` make of its penalties
    constraints: Mapping[str, float] = field(default_factory=dict, hash=False)
    distances: Mapping[str, float] = field(default_factory=dict, hash=False)
    unhealed: Scores | None = None
    arrivals: tuple[tuple[Arrival, Decision], ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, hash=False)
    lost: tuple[str, ...] = ()  # why workers were lost that scored it; it was run again each time
    reason: str = ""
    objectives: Mapping[str, float] = field(default_factory=dict, hash=False)  # where there are several

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.constraints.values())

    @property
    def standing(self) -> tuple[int, float] | None:
        """What survivors that keep their guards are ranked by: one on a higher rung, which is of more documents, stands above all
        below it, whatever its estimate."""
        kept = self.state == "survived" and self.feasible
        return (self.rung, self.estimate.value) if kept and self.estimate else None

    @property
    def documents(self) -> int:
        """Documents that were scored for it, its unhealed form's included."""
        return len(self.scores) + len(self.unhealed or ())

    def to_data(self) -> dict[str, Any]:
        """What `verdict.json` and the journal keep; scores and recipe have files of their own."""
        return {
            "state": self.state,
            "reason": self.reason,
            "rung": self.rung,
            "estimate": self.estimate.to_dict() if self.estimate else None,
            "told": self.told,
            "constraints": dict(self.constraints),
            "distances": dict(self.distances),
            **({"objectives": dict(self.objectives)} if self.objectives else {}),
            "documents": self.documents,
            "healed": self.recipe.heal is not None,
            "arrivals": [[_plain(arrival), vars(decision)] for arrival, decision in self.arrivals],
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            **({"lost": list(self.lost)} if self.lost else {}),
        }


def live(name: str, recipe: Recipe, arena: Arena, *, earns_healing: bool = True, ceiling: int | None = None) -> Life[Outcome]:
    """The whole life of a recipe, up to the rung `ceiling`. Healing is paid for only where the unhealed form survives its rung;
    then it begins anew."""
    top = len(arena.splits.rungs) - 1 if ceiling is None else ceiling
    try:
        if recipe.heal is None or not earns_healing:
            return (yield from climb(name, recipe, arena, top))
        earned = min(arena.experiment.search.heal_after, top)
        plain = yield from climb(name, replace(recipe, heal=None), arena, earned, eta=arena.experiment.search.heal_eta)
        if plain.state == "stopped":
            return plain
        healed = yield from climb(f"{name} healed", recipe, arena, top)
        return replace(
            healed,
            name=name,
            unhealed=plain.scores,
            arrivals=plain.arrivals + healed.arrivals,
            seconds=_sum(plain.seconds, healed.seconds),
            lost=plain.lost + healed.lost,
        )
    except Failure as failure:
        return Outcome(name, recipe, "failed", reason=str(failure))


def climb(name: str, recipe: Recipe, arena: Arena, top: int, *, eta: float | None = None) -> Life[Outcome]:
    """Rung by rung until the race ends it, or the rung `top`; one in `eta` survives that, where a number is given."""
    outcome = Outcome(name, recipe)
    for rung in range(top + 1):
        job = Job(recipe, _new(arena.splits.rung(rung), outcome.scores), measure=_unmeasured(arena, outcome))
        outcome = _scored(outcome, (yield job), rung, arena, eta if rung == top else None)
        if outcome.arrivals[-1][1].reason in ("behind", "guard"):
            return replace(outcome, state="stopped", reason=outcome.arrivals[-1][1].reason)
        if arena.is_worse(outcome.scores):
            return replace(outcome, state="stopped", reason=f"shown to be worse than {arena.anytime.against}")
    return outcome


def _scored(outcome: Outcome, result: Result, rung: int, arena: Arena, eta: float | None) -> Outcome:
    """The outcome with a rung's scores in it, entered in the race."""
    if result.error is not None:
        raise Failure(result.error)
    scores = outcome.scores + result.scores
    distances = {**outcome.distances, **result.distances}
    estimate = arena.estimate(scores)
    objectives = arena.objectives(estimate, scores, distances)
    healed, violated = outcome.recipe.heal is not None, arena.violated(scores, distances)
    objective, values = estimate.value - arena.experiment.guard.price(distances), arena.signed(objectives)
    arrival = Arrival(outcome.name, rung, objective, violated=violated, healed=healed, eta=eta, values=values)
    decision = arena.race.arrive(arrival)
    return replace(
        outcome,
        rung=rung,
        scores=scores,
        distances=distances,
        estimate=estimate,
        objectives=objectives,
        told=objective if decision.told is None else decision.told,
        constraints=arena.constraints(scores, distances),
        arrivals=(*outcome.arrivals, (arrival, decision)),
        seconds=_sum(outcome.seconds, result.seconds),
        lost=outcome.lost + result.lost,
    )


def _new(documents: Mapping[str, Sequence[int]], scores: Scores) -> dict[str, list[int]]:
    """The documents that have not been scored yet."""
    new = {task: [doc for doc in ids if doc not in scores.task(task)] for task, ids in documents.items()}
    return {task: ids for task, ids in new.items() if ids}


def _unmeasured(arena: Arena, outcome: Outcome) -> bool:
    wanted = arena.experiment.guard.measures or PARAMETERS in arena.experiment.search.objectives
    return wanted and not outcome.distances


def _plain(arrival: Arrival) -> dict[str, Any]:
    return {name: value for name, value in vars(arrival).items() if name != "values" or value is not None}


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {key: a.get(key, 0.0) + b.get(key, 0.0) for key in {**a, **b}}
