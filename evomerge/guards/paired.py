"""Two scored models on the same documents: the difference, how sure it is, and what flipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from evomerge.guards.aggregate import aggregate, gradient, shares
from evomerge.guards.flips import clopper_pearson, mcnemar
from evomerge.guards.inference import Inference, by_bootstrap, by_count, by_student, few
from evomerge.guards.pairs import Clusters, Pairs, Values, pair


@dataclass(frozen=True)
class Comparison:
    """What `n` documents say of a candidate against a reference; a difference above 0 is a gain."""

    n: int
    candidate: float
    reference: float
    difference: float
    se: float
    low: float
    high: float
    confidence: float
    negative_flips: int  # documents on which the candidate scores lower; of 0/1 scores: right before, wrong now
    positive_flips: int
    flip_bound: float  # the rate of negative flips is below this (Clopper-Pearson, one-sided 5 %)
    mcnemar_p: float
    p_greater: float  # of "the candidate is no better": what Holm takes
    p_two_sided: float  # of "they are equal"
    method: str  # where the interval and the two p-values come from
    tasks: Mapping[str, Comparison] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `certificate.json`; `tasks` only where there are some."""
        data = {**asdict(self), "tasks": {name: task.to_dict() for name, task in self.tasks.items()}}
        return data if self.tasks else {key: value for key, value in data.items() if key != "tasks"}


def compare(candidate: Values, reference: Values, *, clusters: Clusters | None = None, confidence: float = 0.95) -> Comparison:
    """Compare on the candidate's documents: paired t from 300 of them with 30 differing, exact or widened below."""
    return _compare(pair(candidate, reference, clusters), confidence)


def compare_tasks(
    candidate: Mapping[str, Values],
    reference: Mapping[str, Values],
    *,
    kind: str = "mean",
    weights: Mapping[str, float] | None = None,
    references: Mapping[str, float] | None = None,
    clusters: Mapping[str, Clusters] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare the aggregates of several tasks, paired within each; with weights, tasks without one are left out.

    `mean` and `relative` are linear in the task means: their variances add. `geometric` and `min` are resampled, with a
    fixed seed. One task alone under `mean` or `min` is the comparison of that task.
    """
    names, _ = shares(candidate, kind, weights)
    pairs = {name: pair(candidate[name], reference.get(name, {}), (clusters or {}).get(name)) for name in names}
    tasks = {name: _compare(p, confidence) for name, p in pairs.items()}
    means = [{name: p.means[side] for name, p in pairs.items()} for side in (0, 1)]
    new, old = (float(aggregate(m, kind, weights, references)) for m in means)
    if kind in ("mean", "relative"):
        slopes = gradient(dict.fromkeys(names, 0.0), kind, weights, references)
        inference = by_student(list(pairs.values()), [slopes[name] for name in names], confidence)
    else:
        inference = by_bootstrap(pairs, lambda means: aggregate(means, kind, weights), confidence, seed)
    if len(names) == 1 and kind in ("mean", "min"):
        inference = Inference(*(getattr(tasks[names[0]], name) for name in Inference._fields))
    return _comparison(list(pairs.values()), (new, old), inference, confidence, tasks)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: those below alpha may be claimed together, all true with probability 1 - alpha (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def _compare(pairs: Pairs, confidence: float) -> Comparison:
    exact = pairs.counts and few([pairs])
    inference = by_count(pairs, confidence) if exact else by_student([pairs], [1.0], confidence)
    return _comparison([pairs], pairs.means, inference, confidence)


def _comparison(
    pairs: Sequence[Pairs],
    means: tuple[float, float],
    inference: Inference,
    confidence: float,
    tasks: Mapping[str, Comparison] | None = None,
) -> Comparison:
    n, lost, won = sum(p.n for p in pairs), sum(p.lost for p in pairs), sum(p.won for p in pairs)
    return Comparison(
        n=n,
        candidate=means[0],
        reference=means[1],
        difference=means[0] - means[1],
        confidence=confidence,
        negative_flips=lost,
        positive_flips=won,
        flip_bound=clopper_pearson(lost, n).high,
        mcnemar_p=mcnemar(lost, won),
        tasks=tasks or {},
        **inference._asdict(),
    )
