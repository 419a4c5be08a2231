"""What a certificate says beside its verdict: how good the finalists looked, how much of it was luck, what it was made with."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evomerge import __version__
from evomerge.scoring import ScoringConfig
from evomerge.scoring.scores import Scores
from evomerge.scoring.suite import Splits
from evomerge.study.estimate import optimism, shrink_scores
from evomerge.study.experiment import Experiment
from evomerge.study.record import Record
from evomerge.study.sealed import told_looks
from evomerge.study.selection import Contender, Judge
from evomerge.study.trial import Outcome

Certificate = dict[str, Any]


def header(experiment: Experiment, record: Record, splits: Splits, trials: int, scored: Iterable[Outcome]) -> Certificate:
    """What the figures were made with, and how many documents they took."""
    search = experiment.search
    return {
        "evomerge": __version__,
        "versions": versions(experiment.scoring),
        "scoring": experiment.scoring.to_data(),
        "aggregate": experiment.suite.aggregate,
        "splits": splits.hash,
        # more than one where a study went on after its certificate, or another had opened some: then they were not unseen
        **told_looks(record, splits),
        "seed": search.seed,
        "sampler": search.sampler,
        "limits": search.limits(),  # a study that is asked for more than this goes on
        "trials": trials,
        "documents": sum(outcome.documents for outcome in scored),
    }


def versions(scoring: ScoringConfig) -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "optuna", "lm-eval")}
    if scoring.scorer == "vllm":
        from evomerge.scoring.vllm_start import version

        found["vllm"] = version()
    return found


def figures(
    experiment: Experiment, judge: Judge, best: Sequence[Outcome], select: Mapping[str, Scores], contenders: Sequence[Contender]
) -> Certificate:
    """The finalists as the search saw them, without the luck of the best (empirical Bayes), and on fresh documents."""
    values = _shared([{task: o.scores.values(task) for task in experiment.suite.tasks} for o in best])
    kinds: dict[str, Any] = {
        "kind": experiment.suite.aggregate,
        "weights": dict(experiment.suite.tasks),
        "references": judge.references,
    }
    shrunk = shrink_scores(values, **kinds).values if len(best) > 1 else [o.estimate.value for o in best if o.estimate]
    return {
        "finalists": [
            {
                "name": o.name,
                "naive": o.estimate.value if o.estimate else None,
                "shrunk": float(shrunk[i]),
                "select": summary(judge, select[o.name]),
            }
            for i, o in enumerate(best)
        ],
        "optimism": optimism(values, **kinds, seed=experiment.search.seed) if len(best) > 1 else 0.0,
        "select": {contender.name: summary(judge, contender.scores) for contender in contenders},
    }


def _shared(values: Sequence[Mapping[str, Mapping[int, float]]]) -> list[dict[str, dict[int, float]]]:
    """The same on the documents that all were scored on: in a search that grows, finalists may come from different rungs."""
    common = {task: set.intersection(*(set(each[task]) for each in values)) for task in (values[0] if values else ())}
    return [{task: {doc: each[task][doc] for doc in docs} for task, docs in common.items()} for each in values]


def summary(judge: Judge, scores: Scores) -> Certificate:
    """A model's figures on some documents."""
    return {
        "value": judge.value(scores),
        "mean_skill": judge.mean_skill(scores),
        "tasks": scores.means(),
        "n": {task: len(scores.task(task)) for task in scores.tasks},
    }


def of_winner(judge: Judge, chosen: Contender, disk: Scores, differing: Sequence[Mapping[str, Any]]) -> Certificate:
    """The chosen one as it lies on disk."""
    assert chosen.outcome is not None
    return {
        "name": chosen.name,
        "healed": chosen.outcome.recipe.heal is not None,
        "distances": dict(chosen.outcome.distances),
        "sealed": summary(judge, disk),
        "rows_that_differ_from_the_live_engine": list(differing),
    }


def differing(live: Scores, disk: Scores) -> list[dict[str, Any]]:
    """Documents on which the candidate in memory and the model read back from disk were scored differently."""
    pairs = [(row, disk.task(row.task)[row.doc]) for row in live.rows]
    return [{"task": x.task, "doc": x.doc, "live": x.value, "disk": y.value} for x, y in pairs if x.value != y.value]
