"""What a running study tells whoever watches: a progress display, a log, or nobody."""

from __future__ import annotations

from typing import Protocol

from evomerge.study.trial import Outcome


class Watcher(Protocol):
    """Each method is called as it happens; none may raise."""

    def phase(self, name: str, total: int | None) -> None:
        """A phase begins: parents, baselines, trials, select, sealed; `total` candidates where the number is known."""

    def scored(self, outcome: Outcome, best: float | None) -> None:
        """A parent, baseline or trial has ended; `best` is the highest feasible estimate so far."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Nobody:
    """Watches nothing."""

    def phase(self, name: str, total: int | None) -> None: ...

    def scored(self, outcome: Outcome, best: float | None) -> None: ...

    def note(self, text: str) -> None: ...
