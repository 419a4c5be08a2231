"""A model against its parent, outside any search: every guard's verdict, what comes of them, and which documents flipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.errors import GuardError
from evomerge.guards.criteria import Criterion, verdicts
from evomerge.guards.paired import Comparison, compare
from evomerge.guards.verdict import Outcome, Verdict, overall
from evomerge.scoring.scores import Row, Scores

EXIT_CODES: dict[Outcome, int] = {"passed": 0, "refused": 4, "undecided": 5}


@dataclass(frozen=True)
class Flip:
    """A document that one of the two models answers better."""

    task: str
    doc: int
    hash: str
    kind: str  # lost or won
    parent: float
    candidate: float
    parent_answer: str | None
    candidate_answer: str | None


@dataclass(frozen=True)
class Distance:
    """How far a model moved, measured and not estimated: what is beyond its limit is refused, without a test."""

    value: float  # nats: KL, or what a Fisher predicts
    limit: float | None = None  # None: told only

    @property
    def kept(self) -> bool:
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True)
class Judgement:
    """What all guards together say of a model."""

    verdicts: Mapping[str, Verdict]
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)  # by task
    flips: tuple[Flip, ...] = ()
    distances: Mapping[str, Distance] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        if not all(distance.kept for distance in self.distances.values()):
            return "refused"
        return overall(self.verdicts.values())

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `verdict.json`: every figure, and every document that flipped."""
        return {
            "outcome": self.outcome,
            "guards": {name: verdict.to_dict() for name, verdict in self.verdicts.items()},
            "comparisons": {task: comparison.to_dict() for task, comparison in self.comparisons.items()},
            "flips": [vars(flip) for flip in self.flips],
            "distances": {name: {**vars(distance), "kept": distance.kept} for name, distance in self.distances.items()},
        }


def judge(found: Sequence[Criterion], parent: Scores, candidate: Scores) -> Judgement:
    """The judgement on the candidate's documents; raises GuardError where the two were not asked the same."""
    tasks = list(dict.fromkeys(one.task for one in found))
    if not tasks:
        raise GuardError("guard.tasks: guards no task; name one with its tolerance, as {past_tense: 0.02}")
    for task in tasks:
        _refuse_unlike(task, parent, candidate)
    compared = {task: compare(candidate.values(task), parent.values(task), clusters=candidate.clusters(task)) for task in tasks}
    return Judgement(verdicts(found, parent, candidate), compared, tuple(_flips(tasks, parent, candidate)))


def _refuse_unlike(task: str, parent: Scores, candidate: Scores) -> None:
    rows, known = candidate.task(task), parent.task(task)
    if not rows:
        raise GuardError(f"guard.tasks.{task}: the model has no score of it; score it with `evomerge eval --suite`")
    if missing := [doc for doc in rows if doc not in known]:
        raise GuardError(
            f"guard.tasks.{task}: {len(missing)} of {len(rows)} documents have no score of the parent, the first is "
            f"{missing[0]}; score both on the same split"
        )
    if other := [doc for doc, row in rows.items() if row.hash != known[doc].hash]:
        raise GuardError(
            f"guard.tasks.{task}: document {other[0]} was another one when the parent was scored ({len(other)} differ); "
            "score both with the same task file"
        )


def _flips(tasks: Sequence[str], parent: Scores, candidate: Scores) -> list[Flip]:
    pairs = [(parent.task(task)[doc], row) for task in tasks for doc, row in candidate.task(task).items()]
    return [_flip(old, new) for old, new in pairs if old.value != new.value]


def _flip(old: Row, new: Row) -> Flip:
    kind = "lost" if new.value < old.value else "won"
    return Flip(new.task, new.doc, new.hash, kind, old.value, new.value, old.response, new.response)
