"""Who proposes the trials of an experiment: the sampler that it names, or the one that `auto` picks, kept for the whole study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from evomerge.errors import RecipeError

if TYPE_CHECKING:
    from evomerge.study.experiment import Experiment
    from evomerge.study.record import Record
    from evomerge.study.samplers import Pick

FILE = "sampler.json"  # written by `auto` alone
SINGLE = ("cmaes", "margins", "niches", "portfolio")  # samplers of one objective


def picked(experiment: Experiment, record: Record | None = None) -> Pick | None:
    """What `auto` picks for the experiment; None where it names a sampler. A study keeps its first pick, however many trials
    it is asked for later."""
    from evomerge.study.samplers import Pick, pick

    search = experiment.search
    if search.sampler != "auto":
        return None
    if record and (known := record.read_json(FILE)):
        return Pick(**known)
    pace = None if search.budget is None else search.budget / search.trials
    space, priced = experiment.space.distributions(), experiment.guard.ewc is not None and bool(experiment.guard.ewc.weights)
    found = pick(space, len(search.objectives), search.trials, pace=pace, answers=not priced)
    if record:
        record.write_json(FILE, {"name": found.name, "reason": found.reason, "options": dict(found.options)})
    return found


def sampler_of(
    experiment: Experiment,
    record: Record | None = None,
    starts: Sequence[Mapping[str, Any]] = (),
    references: Mapping[str, float] | None = None,
) -> Any:
    """The experiment's sampler, with beginnings beside those of the space; `references` are what `aggregate: relative` asks for.

    Raises RecipeError where there is none of that name, or it takes no such option.
    """
    from evomerge.study.samplers import make_sampler

    search, space, found = experiment.search, experiment.space, picked(experiment, record)
    if len(search.objectives) > 1 and search.sampler in SINGLE:
        raise RecipeError(f"search.sampler: {search.sampler} takes one objective; name auto, nsga2, nsga3 or tpe for several")
    name, options = (found.name, dict(found.options)) if found else (search.sampler, {})
    if search.prior != "none" and search.sampler not in ("auto", "cmaes"):
        raise RecipeError(f"search.prior: belongs to cmaes, and {search.sampler} has no first step; leave it out")
    known: dict[str, Any] = {"seed": search.seed, "space": space.distributions(), "start": [*space.starts(), *starts]}
    known["active"] = space.active if space.is_conditional else None
    if search.prior == "discrepancy" and name == "cmaes":
        from evomerge.study.discrepancy import scales

        options = {**options, "scales": scales(space)}
    if name == "margins":
        options = {"combine": _combine(experiment, references), **options}
    return make_sampler(name, **known, **{**options, **search.sampler_options})


def _combine(experiment: Experiment, references: Mapping[str, float] | None) -> Any:
    """The suite's aggregate, of means that are foretold. Raises RecipeError where what is told of a trial is not that alone."""
    from evomerge.guards.aggregate import aggregate

    if experiment.guard.ewc and experiment.guard.ewc.weights:
        raise RecipeError("guard.ewc.weights: the sampler margins foretells scores and no prices; give guard.ewc.limits instead")
    kind, weights = experiment.suite.aggregate, experiment.suite.tasks
    return partial(aggregate, kind=kind, weights=weights, references=references if kind == "relative" else None)
