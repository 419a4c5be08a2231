"""What a search would do, worked out before anything runs: `evomerge search --dry-run`."""

from __future__ import annotations

from pathlib import Path

from evomerge.guards.criteria import Criterion, criteria
from evomerge.guards.rates import flips_needed
from evomerge.guards.regression import documents_needed, smallest_margin
from evomerge.report.tables import align
from evomerge.scoring.suite import Splits
from evomerge.study.baselines import baselines, parents
from evomerge.study.devices import describe, seats
from evomerge.study.experiment import Experiment
from evomerge.study.proposer import picked
from evomerge.study.search import prepare, with_limits
from evomerge.study.trial import AIM


def outlook(path: str | Path, trials: int | None = None, budget: float | None = None, workers: int | None = None) -> str:
    """Dimensions, devices, documents and guards of an experiment, after the same checks as a run. Raises EvomergeError."""
    experiment = with_limits(Experiment.read(path), trials, budget)
    splits, _ = prepare(experiment)
    search = experiment.search
    until = f", {search.budget:.0f} s" if search.budget else ""
    hand_made = len(baselines(experiment.space)) if search.baselines else 0
    lines = [
        f"{path}: {len(experiment.space.parameters)} parameters, {search.trials} trials by {search.sampler}{until}",
        *([f"auto picks {found}"] if (found := picked(experiment)) else []),
        f"first the {len(parents(experiment.space))} parents and {hand_made} baselines; seed {search.seed}",
        describe(experiment.scoring, seats(experiment.scoring, workers)),
        "",
        *_documents(experiment, splits),
        "",
        *_guards(experiment, splits),
    ]
    return "\n".join(lines).rstrip()


def _documents(experiment: Experiment, splits: Splits) -> list[str]:
    rungs = [f"rung {i}" for i in range(len(splits.rungs))]
    rows = [["task", "role", *rungs, "select", "sealed"]]
    for task in splits.search:
        role = "guard" if task in experiment.guard.tasks else "target"
        counts = [rung[task] for rung in splits.rungs]
        rows.append([task, role, *map(str, (*counts, len(splits.select[task]), len(splits.sealed[task])))])
    return align(rows)


def _guards(experiment: Experiment, splits: Splits) -> list[str]:
    guard = experiment.guard
    lines = [_limit(one, len(splits.sealed[one.task]), guard.discordance) for one in criteria(guard)]
    return lines + [f"guard {name}: {limit:g} nats at most" for name, limit in guard.distances.items()]


def _limit(one: Criterion, sealed: int, discordance: float) -> str:
    if one.measure == "floor":
        return f"guard {one.task}: a mean below {one.limit:g} is refused; {sealed} sealed documents"
    if one.measure == "flips":
        return (
            f"guard {one.task}: {one.limit:.1%} of the documents or more turned wrong is refused; {sealed} sealed documents, "
            f"{flips_needed(one.limit, AIM * one.limit)} pass one that turns half as many wrong, as the search aims at"
        )
    against = " to the best parent" if one.against == "best" else ""
    return (
        f"guard {one.task}: a loss of {one.limit:g} or more{against} is refused; {sealed} sealed documents, "
        f"{documents_needed(one.limit, discordance)} decide it at {discordance:.0%} discordance "
        f"(these could decide {smallest_margin(sealed, discordance):.3f})"
    )
