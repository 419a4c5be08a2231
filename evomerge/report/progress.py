"""A running study on the terminal: one live line a phase there, plain lines in a file, JSON for a machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from evomerge.study.trial import Outcome
from evomerge.study.watch import Nobody, Watcher

EVERY = 10.0  # seconds between lines where nobody can see a bar move


@contextmanager
def watcher(log: str) -> Iterator[Watcher]:
    """`auto`: bars on a terminal, lines elsewhere; `json`: an object a line; `quiet`: nothing."""
    if log == "json":
        yield JsonLines()
    elif log == "quiet":
        yield Nobody()
    elif sys.stderr.isatty():
        with Bars() as bars:
            yield bars
    else:
        yield Lines()


class Bars:
    """Live progress bars on a terminal."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._said = _Tally()

    def __enter__(self) -> Bars:
        self._progress.start()
        self.phase("starting", None)
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._progress.stop()

    def phase(self, name: str, total: int | None) -> None:
        self._finish()
        self._task = self._progress.add_task(name, total=total, said="")

    def scored(self, outcome: Outcome, best: float | None) -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=1, said=self._said.add(outcome, best))

    def note(self, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=1, said=text)

    def _finish(self) -> None:
        if self._task is not None:
            self._progress.stop_task(self._task)


class Lines:
    """A line when a phase begins and every few seconds after, for logs."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._begun = self._last = time.monotonic()
        self._done, self._name = 0, ""
        self._total: int | None = None
        self._said = _Tally()

    def phase(self, name: str, total: int | None) -> None:
        self._done, self._total, self._name = 0, total, name
        self._print(f"{name}: {total} to score" if total else name)

    def scored(self, outcome: Outcome, best: float | None) -> None:
        self._count(self._said.add(outcome, best))

    def note(self, text: str) -> None:
        self._count(text)

    def _count(self, said: str) -> None:
        self._done += 1
        if time.monotonic() - self._last >= EVERY or self._done == self._total:
            self._print(f"{self._name} {self._done}/{self._total or '?'}  {said}")

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        self._console.print(f"[{self._last - self._begun:7.1f}s] {text}", markup=False)


class JsonLines:
    """Every event as a JSON object on standard error."""

    def phase(self, name: str, total: int | None) -> None:
        self._write({"event": "phase", "name": name, "total": total})

    def scored(self, outcome: Outcome, best: float | None) -> None:
        estimate = outcome.estimate.value if outcome.estimate else None
        event = {"event": "scored", "name": outcome.name, "state": outcome.state, "rung": outcome.rung, "estimate": estimate}
        self._write(
            {**event, "feasible": outcome.feasible, "documents": outcome.documents, "reason": outcome.reason, "best": best}
        )

    def note(self, text: str) -> None:
        self._write({"event": "note", "text": text})

    def _write(self, event: dict[str, Any]) -> None:
        sys.stderr.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
        sys.stderr.flush()


class _Tally:
    """How the trials ended so far, in a few words."""

    def __init__(self) -> None:
        self.states: dict[str, int] = {}

    def add(self, outcome: Outcome, best: float | None) -> str:
        self.states[outcome.state] = self.states.get(outcome.state, 0) + 1
        counts = ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))
        return f"best {best:.4f}  {counts}" if best is not None else counts
