"""How long a study has gone on, over all the processes that worked at it, and how much of that the loop itself took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from evomerge.study.record import Record

FILE = "clock.json"
SELDOM = 1.0  # seconds between two writings while trials run: a disk takes longer than a simulated trial


class Clock:
    """Seconds by the wall, and those of the loop's own: asking, telling, recording."""

    def __init__(self, record: Record, started: float | None = None) -> None:
        """`started`: when, by time.monotonic(), this process began to prepare; now, if not given."""
        now = time.monotonic()
        self._started = now if started is None else started
        self.preparing = now - self._started
        spent = record.read_json(FILE) or {"seconds": 0.0, "loop": 0.0}
        self._record, self._before, self._own = record, float(spent["seconds"]), float(spent["loop"])
        self._written = -SELDOM

    def elapsed(self) -> float:
        return self._before + time.monotonic() - self._started

    @contextmanager
    def own(self) -> Iterator[None]:
        """What is done inside is the loop's own work."""
        begun = time.perf_counter()
        yield
        self._own += time.perf_counter() - begun

    def tick(self) -> None:
        """Write, unless that was done just now; a study that is killed loses as much of its count."""
        if self.elapsed() - self._written >= SELDOM:
            self.write()

    def write(self) -> None:
        self._written = self.elapsed()
        self._record.write_json(FILE, {"seconds": round(self.elapsed(), 3), "loop": round(self._own, 3)})
