"""How good a model is: one row per document, whatever did the scoring."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.errors import ScoringError

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # json.dumps makes a new one for every row


@dataclass(frozen=True)
class Row:
    """One document answered by one model; more is better in `value` and in `margin`, for every metric."""

    task: str
    doc: int  # index in the task
    hash: str  # of the document's content
    value: float  # the task's main metric, mostly 0 or 1
    margin: float | None = None  # how clearly: log p(gold) - max log p(other); above 0 where `value` is 1
    response: str | None = None
    context: str | None = None  # what it shares with other documents, such as a passage: their errors come together

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Row:
        return cls(**data)

    def to_data(self) -> dict[str, Any]:
        data = dict(vars(self))
        if self.context is None:
            del data["context"]
        return data


@dataclass(frozen=True)
class Scores:
    """The rows of one model, in the order of task and document."""

    rows: tuple[Row, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Scores:
        """Rows in any order, each document once; the same row twice is kept once, two unlike rows are an error."""
        seen: dict[tuple[str, int], Row] = {}
        for row in rows:
            known = seen.setdefault((row.task, row.doc), row)
            if known is not row and known != row:
                raise ScoringError(f"{row.task}: document {row.doc} was scored twice with different results; keep one of them")
        return cls(tuple(seen[key] for key in sorted(seen)))

    def __add__(self, other: Scores) -> Scores:
        return Scores.of((*self.rows, *other.rows))

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _by_task(self) -> dict[str, dict[int, Row]]:
        tasks: dict[str, dict[int, Row]] = {}
        for row in self.rows:
            tasks.setdefault(row.task, {})[row.doc] = row
        return tasks

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._by_task)

    @property
    def documents(self) -> dict[str, list[int]]:
        return {task: list(rows) for task, rows in self._by_task.items()}

    def task(self, task: str) -> dict[int, Row]:
        """The rows of one task by document; empty where none was scored."""
        return self._by_task.get(task, {})

    @cached_property
    def _values(self) -> dict[str, dict[int, float]]:
        return {task: {doc: row.value for doc, row in rows.items()} for task, rows in self._by_task.items()}

    def values(self, task: str) -> Mapping[int, float]:
        """The scores of one task by document; empty where none was scored."""
        return self._values.get(task, {})

    def clusters(self, task: str) -> dict[int, str] | None:
        """What each document of a task shares with others, one without a context alone; None where none has one."""
        rows = self.task(task)
        if all(row.context is None for row in rows.values()):
            return None
        return {doc: f"alone {doc}" if row.context is None else row.context for doc, row in rows.items()}

    def margins(self, task: str) -> dict[int, float]:
        """The continuous margins of one task, of those documents that have one."""
        return {doc: row.margin for doc, row in self.task(task).items() if row.margin is not None}

    def mean(self, task: str) -> float:
        values = self.values(task)
        if not values:
            raise ScoringError(f"{task}: no document of this task was scored (scored: {', '.join(self.tasks) or 'nothing'})")
        return math.fsum(values.values()) / len(values)

    def means(self) -> dict[str, float]:
        return {task: self.mean(task) for task in self.tasks}

    def select(self, documents: Mapping[str, Sequence[int]]) -> Scores:
        """Only these documents, all of which must have been scored."""
        missing = {task: [doc for doc in docs if doc not in self.task(task)] for task, docs in documents.items()}
        for task, docs in missing.items():
            if docs:
                raise ScoringError(
                    f"{task}: {len(docs)} of {len(documents[task])} documents were not scored, the first is {docs[0]}"
                )
        return Scores.of(self.task(task)[doc] for task, docs in documents.items() for doc in docs)

    def write(self, path: str | Path) -> None:
        """One JSON object a line, all or nothing: a reader never sees half a file."""
        path = Path(path)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=path.name, suffix=".part", encoding="utf-8", delete=False
        ) as file:
            try:
                file.writelines(_ENCODER.encode(row.to_data()) + "\n" for row in self.rows)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                os.unlink(file.name)
                raise
        os.chmod(file.name, 0o644)  # NamedTemporaryFile makes files that only their owner can read
        os.replace(file.name, path)

    @classmethod
    def read(cls, path: str | Path) -> Scores:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ScoringError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(Row.from_data(json.loads(line)))
            except (ValueError, TypeError):
                raise ScoringError(f"{path}, line {number}: not a row of scores; delete the file and score again") from None
        return cls.of(rows)
