"""What a candidate is worth, and how much of that is luck: control variates, shrinkage, optimism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.errors import ScoringError
from evomerge.guards.aggregate import aggregate, gradient, shares
from evomerge.guards.paired import holm
from evomerge.guards.pairs import Values

__all__ = ["Estimate", "Shrunk", "TaskEstimate", "estimate", "holm", "optimism", "shrink", "shrink_scores", "table"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TaskEstimate:
    """A task's mean over all documents, from some of them."""

    mean: float
    se: float
    n: int


@dataclass(frozen=True)
class Estimate:
    """A candidate's aggregate over all documents of the split, from the `n` it was scored on."""

    value: float
    se: float
    n: int
    tasks: Mapping[str, TaskEstimate]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the record of a trial."""
        return asdict(self)


def estimate(
    candidate: Mapping[str, Values],
    base: Mapping[str, Values],
    *,
    kind: str = "geometric",
    weights: Mapping[str, float] | None = None,
    references: Mapping[str, float] | None = None,
    wholes: Mapping[str, float] | None = None,
) -> Estimate:
    """Per task mean_all(base) + mean_S(candidate - base), then aggregated; the error by the delta method.

    The base knows every document, so its luck on the subset S is known and cancels; on all documents this is the mean.
    `wholes` are its means where somebody has them already.
    """
    names, _ = shares(candidate, kind, weights)
    known = wholes or {}
    tasks = {name: estimate_task(candidate[name], base.get(name, {}), name, known.get(name)) for name in names}
    means = {name: task.mean for name, task in tasks.items()}
    slopes = gradient(means, kind, weights, references)
    se = float(np.sqrt(sum((slopes[name] * task.se) ** 2 for name, task in tasks.items())))
    return Estimate(float(aggregate(means, kind, weights, references)), se, sum(task.n for task in tasks.values()), tasks)


def estimate_task(candidate: Values, base: Values, name: str = "task", whole: float | None = None) -> TaskEstimate:
    """mean_all(base) + mean_S(candidate - base), and sd(candidate - base) / √n; of one document the error is put at 1."""
    missing = [doc for doc in candidate if doc not in base]
    if missing or not candidate:
        what = f"the base has no score of document {missing[0]}" if missing else "the candidate has no document"
        raise ScoringError(f"{name}: {what}; score the base on the whole split first")
    docs = sorted(candidate)
    delta = np.array([candidate[doc] - base[doc] for doc in docs], dtype=np.float64)
    se = float(delta.std(ddof=1) / np.sqrt(len(delta))) if len(delta) > 1 else 1.0
    whole = mean_of(base) if whole is None else whole
    return TaskEstimate(float(whole + delta.mean()), se, len(delta))


def mean_of(values: Values) -> float:
    """Over all documents, in their order."""
    return float(np.mean([values[doc] for doc in sorted(values)]))


class Shrunk(NamedTuple):
    """Estimates pulled towards their mean, by as much as their spread is luck."""

    values: Array  # [K]
    centre: float
    between: float  # variance of the true values, as far as it can be seen
    kept: Array  # [K], share of its distance from the centre that each keeps


def shrink(means: ArrayLike, errors: ArrayLike) -> Shrunk:
    """Empirical Bayes over candidates: `errors` are standard errors, equal or not (other documents, or another number).

    between = max(0, var(means) - mean(errors²)); each keeps between / (between + error²) of its distance from the
    precision-weighted centre (Efron & Morris 1975). A normal prior over exchangeable candidates: finalists, not the path of
    a sampler.
    """
    m, s2 = np.asarray(means, dtype=np.float64), np.asarray(errors, dtype=np.float64) ** 2
    between = max(0.0, float(m.var(ddof=1) - s2.mean())) if len(m) > 1 else 0.0
    total = between + s2
    precision = 1 / total if total.all() else (total == 0).astype(np.float64)
    centre = float((precision * m).sum() / precision.sum())
    kept = np.divide(between, total, out=np.ones_like(total), where=total > 0)
    return Shrunk(centre + kept * (m - centre), centre, between, kept)


def shrink_scores(
    candidates: Sequence[Mapping[str, Values]],
    *,
    kind: str = "geometric",
    weights: Mapping[str, float] | None = None,
    references: Mapping[str, float] | None = None,
) -> Shrunk:
    """Shrink the aggregates of candidates scored on the same documents, whose common luck is no error between them.

    For one task: s² = mean over candidates of var(y - mean over candidates of y) / n. Each task's share enters through the
    slope of the aggregate there.
    """
    scores = table(candidates, weights)
    means = [{name: float(rows[k].mean()) for name, rows in scores.items()} for k in range(len(candidates))]
    values = [float(aggregate(m, kind, weights, references)) for m in means]
    slopes = [gradient(m, kind, weights, references) for m in means]
    variance = 0.0
    for name, rows in scores.items():
        slope = np.array([s[name] for s in slopes])[:, None]
        residual = slope * (rows - rows.mean(axis=0))  # [K, n]
        variance += float(residual.var(axis=1, ddof=1).mean()) / rows.shape[1]
    return shrink(values, np.full(len(values), np.sqrt(variance)))


def optimism(
    candidates: Sequence[Mapping[str, Values]],
    *,
    kind: str = "geometric",
    weights: Mapping[str, float] | None = None,
    references: Mapping[str, float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> float:
    """How much too high the best of these candidates is reported: mean over resamples of (its score there - its score).

    Documents are drawn again within each task, the same for all candidates; the best is chosen anew each time.
    """
    scores = table(candidates, weights)
    rng = np.random.default_rng(seed)
    drawn, known = {}, {}
    for name, rows in sorted(scores.items()):
        n = rows.shape[1]
        drawn[name] = rng.multinomial(n, np.full(n, 1 / n), size=resamples) @ rows.T / n  # [B, K]
        known[name] = rows.mean(axis=1)  # [K]
    again, once = aggregate(drawn, kind, weights, references), aggregate(known, kind, weights, references)
    best = again.argmax(axis=1)
    return float((again.max(axis=1) - once[best]).mean())


def table(candidates: Sequence[Mapping[str, Values]], weights: Mapping[str, float] | None = None) -> dict[str, Array]:
    """{task: scores [K, n]} of candidates scored on the same documents."""
    names, _ = shares(candidates[0], "mean", weights)
    docs = {name: sorted(candidates[0][name]) for name in names}
    for k, scores in enumerate(candidates):
        for name in names:
            if sorted(scores.get(name, {})) != docs[name]:
                raise ScoringError(f"{name}: candidate {k} was scored on other documents than candidate 0; score all on the same")
    return {name: np.array([[c[name][doc] for doc in docs[name]] for c in candidates], dtype=np.float64) for name in names}
