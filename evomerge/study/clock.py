"""How long a study has gone on, over all the processes that worked at it, and how much of that the loop itself took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from evomerge.study.record import Record

FILE = "clock.json"


class Clock:
    """Seconds by the wall, and those of the loop's own: asking, telling, recording."""

    def __init__(self, record: Record) -> None:
        spent = record.read_json(FILE) or {"seconds": 0.0, "loop": 0.0}
        self._record, self._before, self._own = record, float(spent["seconds"]), float(spent["loop"])
        self._started = time.monotonic()

    def elapsed(self) -> float:
        return self._before + time.monotonic() - self._started

    @contextmanager
    def own(self) -> Iterator[None]:
        """What is done inside is the loop's own work."""
        begun = time.perf_counter()
        yield
        self._own += time.perf_counter() - begun

    def write(self) -> None:
        self._record.write_json(FILE, {"seconds": round(self.elapsed(), 3), "loop": round(self._own, 3)})
