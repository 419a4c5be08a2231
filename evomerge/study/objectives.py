"""What a search is after: the suite's aggregate, single tasks, and what a model costs; one number each, told to the sampler.

search: {objectives: [target, zoo_sort, length]}

target         the suite's aggregate, with its weights; more is better
TASK           the mean of a target or guard task; more is better (metrics of which less is better are negated in the rows)
length         characters of an answer, mean over the target documents answered in text; less is better
parameters     numbers in the model, as where layers are stacked; less is better
kl, ewc NAME   a distance that the guard bounds; less is better
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.document import Place, nearest
from evomerge.errors import DocumentError, ScoringError
from evomerge.scoring.scores import Scores
from evomerge.scoring.suite import GuardConfig, Suite
from evomerge.study.estimate import Estimate, estimate_task

TARGET, LENGTH, PARAMETERS = "target", "length", "parameters"


def check_objectives(names: Sequence[str], suite: Suite, guard: GuardConfig, place: Place) -> None:
    """Raises DocumentError on an objective that nothing measures, or that stands twice."""
    known = (TARGET, *suite.tasks, *guard.tasks, LENGTH, PARAMETERS, *guard.distances)
    for name in names:
        if name not in known:
            raise DocumentError(f"{place}: nothing measures {name!r}{nearest(name, known)}; known are {', '.join(known)}")
    if not names or len(set(names)) < len(names):
        raise DocumentError(f"{place}: name at least one objective, and each once, as [target, length]")


def is_less_better(name: str, suite: Suite, guard: GuardConfig) -> bool:
    """Whether an objective is a cost."""
    return name not in (TARGET, *suite.tasks, *guard.tasks)


def refuse_textless(names: Sequence[str], suite: Suite, base: Scores) -> None:
    """Raises ScoringError where the length of answers is asked for and no answer is text."""
    if LENGTH in names and not any(lengths(base, task) for task in suite.tasks):
        _no_text()


def objective_values(
    names: Sequence[str],
    estimate: Estimate,
    scores: Scores,
    base: Scores,
    distances: Mapping[str, float],
    suite: Suite,
) -> dict[str, float]:
    """Every objective of a candidate, estimated for all search documents. Raises ScoringError where it cannot be measured."""
    return {name: _value(name, estimate, scores, base, distances, suite) for name in names}


def _value(name: str, estimate: Estimate, scores: Scores, base: Scores, distances: Mapping[str, float], suite: Suite) -> float:
    if name == TARGET:
        return estimate.value
    if name in estimate.tasks:
        return estimate.tasks[name].mean
    if name == LENGTH:
        return float(np.mean([_length(scores, base, task) for task in suite.tasks if lengths(base, task)] or [_no_text()]))
    if name in distances:
        return distances[name]
    return estimate_task(scores.values(name), base.values(name), name).mean


def _length(scores: Scores, base: Scores, task: str) -> float:
    return estimate_task(lengths(scores, task), lengths(base, task), task).mean


def lengths(scores: Scores, task: str) -> dict[int, float]:
    """Characters of every answer given in text."""
    return {doc: float(len(row.response)) for doc, row in scores.task(task).items() if row.response is not None}


def _no_text() -> float:
    raise ScoringError("search.objectives: length needs answers in text, and no task of the suite gives any; leave it out")
