"""The ledger of a line of releases: what each release answered, document by document, chained by hash.

`ledger.jsonl` travels with the model. Its first line names the line; every other is a release, with the hash of the line before
it, so that nothing can be taken out or edited unseen. A new champion is held to everything that any release ever passed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.errors import GuardError
from evomerge.guards.rates import decide_flips
from evomerge.guards.verdict import Verdict
from evomerge.scoring.scores import Scores

Answers = Mapping[str, Mapping[str, float]]  # {task: {hash of a document: score}}


@dataclass(frozen=True)
class Release:
    """One model of the line, and what it scored."""

    name: str
    model: str  # fingerprint
    answers: Answers

    def mean(self, task: str) -> float:
        values = self.answers[task].values()
        return math.fsum(values) / len(values)


@dataclass(frozen=True)
class Ledger:
    """A line of releases, oldest first."""

    line: str
    releases: tuple[Release, ...] = ()

    def add(self, name: str, model: str, scores: Scores) -> Ledger:
        """The line with one more release at its end."""
        if any(release.name == name for release in self.releases):
            raise GuardError(f"ledger of {self.line}: has a release {name!r} already; give the new one another name")
        answers = {task: {row.hash: row.value for row in scores.task(task).values()} for task in scores.tasks}
        return Ledger(self.line, (*self.releases, Release(name, model, answers)))

    @property
    def best(self) -> dict[str, dict[str, float]]:
        """The best score that any release ever had, of every document that one was asked."""
        best: dict[str, dict[str, float]] = {}
        for release in self.releases:
            for task, values in release.answers.items():
                known = best.setdefault(task, {})
                known.update({document: max(value, known.get(document, value)) for document, value in values.items()})
        return best

    # --- the file

    def to_text(self) -> str:
        lines, before = [], ""
        for content in ({"line": self.line}, *(vars(release) for release in self.releases)):
            entry = {**content, "before": before}
            before = _hash(entry)
            lines.append(json.dumps({**entry, "hash": before}, sort_keys=True, ensure_ascii=False))
        return "\n".join(lines) + "\n"

    def write(self, path: str | Path) -> None:
        """All of it or nothing."""
        path = Path(path)
        draft = path.with_name(path.name + ".draft")
        draft.write_text(self.to_text(), encoding="utf-8")
        draft.replace(path)

    @classmethod
    def read(cls, path: str | Path, line: str | None = None) -> Ledger:
        """A ledger whose every hash holds. Raises GuardError where it was edited, or belongs to another line than `line`."""
        entries = _entries(Path(path))
        if line is not None and entries[0]["line"] != line:
            raise GuardError(f"{path}: is the ledger of {entries[0]['line']!r}, not of {line!r}; give the one of this line")
        return cls(entries[0]["line"], tuple(Release(e["name"], e["model"], e["answers"]) for e in entries[1:]))


def hold(ledger: Ledger, scores: Scores, budgets: Mapping[str, float]) -> dict[str, Verdict]:
    """The flip budget of each task on everything the line ever passed: a document counts as lost where the model scores lower
    than the best release did. Raises GuardError where the model was not asked all that the line knows of a task."""
    return {
        task: decide_flips(*_known(ledger, scores, task), budget, clusters=scores.clusters(task))
        for task, budget in budgets.items()
    }


def _known(ledger: Ledger, scores: Scores, task: str) -> tuple[dict[int, float], dict[int, float]]:
    """The line's best and the model's scores, of the documents that the line knows."""
    best = ledger.best.get(task, {})
    rows = [row for row in scores.task(task).values() if row.hash in best]
    missing = len(best) - len({row.hash for row in rows})
    if missing or not rows:
        raise GuardError(
            f"ledger of {ledger.line}: "
            + (
                f"the model has no score of {missing} of the {len(best)} documents of {task}"
                if best
                else f"knows nothing of {task}"
            )
            + " that the line was held to; score them, with the task files and few-shot settings of its releases"
        )
    return {row.doc: best[row.hash] for row in rows}, {row.doc: row.value for row in rows}


class Transfer(NamedTuple):
    """What a line of releases kept, in points of the mean score; nan where a line is too short to tell."""

    backward: float  # 1/(T-1) Σ R[T, i] - R[i, i]: what later releases did to earlier skills
    forward: float  # mean of R[i-1, i] - R[0, i]: what earlier releases did for skills yet to come
    forgetting: Mapping[str, float]  # of each skill but the last: its score when it was learned, less the last release's
    worst: Mapping[str, float]  # max R[l, i] - R[T, i]: against the best that any release had (Chaudhry et al. 2018)


def transfer(scores: Mapping[str, Sequence[float]], learned: Mapping[str, int]) -> Transfer:
    """Transfer over a line: `scores` of each skill by release, oldest first; `learned` the release at which a skill arrived.

    Release 0 is the model before the line. Backward transfer and forgetting as in Lopez-Paz & Ranzato (2017) and in Avalanche,
    whose forgetting is initial - last; forward transfer against release 0, of skills that a release could prepare.
    """
    old = {skill: when for skill, when in learned.items() if when < len(scores[skill]) - 1}
    coming = {skill: when for skill, when in learned.items() if when > 1}
    forgotten = {skill: scores[skill][when] - scores[skill][-1] for skill, when in old.items()}
    return Transfer(
        backward=-_mean(list(forgotten.values())),
        forward=_mean([scores[skill][when - 1] - scores[skill][0] for skill, when in coming.items()]),
        forgetting=forgotten,
        worst={skill: max(scores[skill]) - scores[skill][-1] for skill in old},
    )


def transfer_of(ledger: Ledger, learned: Mapping[str, str] | None = None) -> Transfer:
    """Transfer over the releases of a ledger, of the tasks that all of them were asked; the first release is the model before.

    `learned` names the release at which a task arrived; one that is not named came with the release that raised its score most,
    or with the first. Raises GuardError on a task or release that the line does not know.
    """
    names = [release.name for release in ledger.releases]
    shared = sorted(set.intersection(*(set(release.answers) for release in ledger.releases))) if names else []
    scores = {task: [release.mean(task) for release in ledger.releases] for task in shared}
    arrived = {task: _steepest(values) for task, values in scores.items()}
    for task, name in (learned or {}).items():
        if task not in scores or name not in names:
            known = f"its tasks: {', '.join(shared)}; its releases: {', '.join(names)}"
            raise GuardError(f"ledger of {ledger.line}: {task} cannot have come with {name!r} ({known})")
        arrived[task] = names.index(name)
    return transfer(scores, arrived)


def _steepest(values: Sequence[float]) -> int:
    """The place of the greatest rise over the value before; 0 where none rose."""
    rises = [0.0, *(after - before for before, after in pairwise(values))]
    return rises.index(max(rises))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(entry), sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GuardError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    entries: list[dict[str, Any]] = []
    for number, text in enumerate(lines, 1):
        entry = _entry(text, {"line"} if number == 1 else {"name", "model", "answers"})
        if entry is None or entry["before"] != (entries[-1]["hash"] if entries else ""):
            raise GuardError(
                f"{path}, line {number}: was edited after it was written; restore the ledger that came with the model"
            )
        entries.append(entry)
    if not entries:
        raise GuardError(f"{path}: is empty; restore the ledger that came with the model, or begin a line without one")
    return entries


def _entry(text: str, keys: set[str]) -> dict[str, Any] | None:
    """A line whose hash is its own; None for anything else."""
    try:
        entry = json.loads(text)
    except ValueError:
        return None
    if not isinstance(entry, dict) or set(entry) != keys | {"before", "hash"}:
        return None
    content = {key: value for key, value in entry.items() if key != "hash"}
    return entry if _hash(content) == entry["hash"] else None
