"""Who does the scoring: this process, or a pool of them. A job goes in, a result comes out; a dead worker costs no trial.

A life is a generator that yields jobs and is sent their results (see trial.py); each lane takes one life at a time, so that
a candidate stays where its weights already are.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, TypeVar

from evomerge.errors import EvomergeError, ScoringError
from evomerge.recipe import Recipe
from evomerge.scoring.scores import Scores
from evomerge.study.devices import Seat, gpus

T = TypeVar("T")
LOST = 70  # exit code of a process that lost its device
DEATHS_ALLOWED = 2  # a job that kills this many workers is at fault itself


@dataclass(frozen=True)
class Job:
    """Score documents with a recipe, or with a model directory as it lies on disk; `save` writes the candidate first."""

    recipe: Recipe | None
    documents: Mapping[str, Sequence[int]] = field(hash=False)
    measure: bool = False  # how far the candidate moved, as the guard asks
    model: Path | None = None
    save: Path | None = None


@dataclass(frozen=True)
class Result:
    """What a job gave; `error` where it failed."""

    scores: Scores = field(default_factory=Scores)
    distances: dict[str, float] = field(default_factory=dict, hash=False)  # as in GuardConfig.distances
    seconds: dict[str, float] = field(default_factory=dict, hash=False)
    error: str | None = None
    lost: tuple[str, ...] = ()  # why each worker that the job was given to before did not answer


Life = Generator[Job, Result, T]


class Worker(Protocol):
    """Whatever can do a job; see lab.py."""

    def evaluate(self, job: Job) -> Result: ...

    def close(self) -> None: ...


class Executor(Protocol):
    """Runs lives side by side and gives back what each returned, in the order in which they end."""

    workers: int

    def run(self, lives: Iterator[Life[T]]) -> Iterator[T]: ...

    def close(self) -> None: ...


class DeviceLost(ScoringError):
    """The device is gone for this process, and with it every candidate that the process would be given: it must end."""


def attempt(worker: Worker, job: Job) -> Result:
    """The result of a job, or the reason why it failed: with the trial's own, the only place that catches everything.

    Raises DeviceLost where no job can succeed any more in this process.
    """
    try:
        return worker.evaluate(job)
    except EvomergeError as error:
        return Result(error=str(error))
    except Exception as error:
        if device_is_lost(error):
            raise DeviceLost(f"{str(error).splitlines()[0]}; the device is lost to this process, go on with --resume") from None
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Result(error=f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})")


def device_is_lost(error: BaseException) -> bool:
    """Whether an error is a device's own, after which it answers nothing more from this process; a lack of memory is not."""
    torch = sys.modules.get("torch")  # not imported, it has raised nothing
    return torch is not None and isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)


class InProcess:
    """One lane, in this process."""

    workers = 1

    def __init__(self, make: Callable[[], Worker]) -> None:
        self.worker = make()

    def run(self, lives: Iterator[Life[T]]) -> Iterator[T]:
        for life in lives:
            try:
                job = next(life)
                while True:
                    job = life.send(attempt(self.worker, job))
            except StopIteration as end:
                yield end.value

    def close(self) -> None:
        self.worker.close()


class Pool:
    """A lane for each of several processes on this machine."""

    def __init__(self, make: Callable[[], Worker], workers: int, seats: Sequence[Seat] = ()) -> None:
        self.make, self.workers = make, workers
        self.lanes = [_Lane(make, seat) for seat in seats or [Seat()] * workers]

    def run(self, lives: Iterator[Life[T]]) -> Iterator[T]:
        idle, busy = list(self.lanes), list[_Lane]()
        while True:
            while idle and (life := next(lives, None)) is not None:
                lane = idle.pop()
                ended = lane.begin(life)
                (idle if ended else busy).append(lane)
                yield from ended
            if not busy:
                return
            for lane in _ready(busy):
                ended = lane.advance()
                if ended:
                    busy.remove(lane)
                    idle.append(lane)
                yield from ended

    def close(self) -> None:
        for lane in self.lanes:
            lane.stop()


class _Lane:
    """One worker process and the life it serves."""

    def __init__(self, make: Callable[[], Worker], seat: Seat) -> None:
        self.make, self.seat = make, seat
        self.life: Life[Any] | None = None
        self.job: Job | None = None
        self.lost: list[str] = []  # why each worker died that had the job
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # daemons may have no children, and an engine's ranks are children; those end with the pipe to their parent
        self.process = context.Process(target=_serve, args=(theirs, self.make), daemon=self.seat.ranks == 1)
        with self.seat.taken():
            self.process.start()
        theirs.close()

    def begin(self, life: Life[T]) -> list[T]:
        self.life = life
        return self._step(lambda: next(life))

    def advance(self) -> list[Any]:
        """Take the result that has arrived and go on; a list of what the life returned, if it ended."""
        assert self.life is not None
        result, life = self._receive(), self.life
        return [] if result is None else self._step(lambda: life.send(result))

    def _step(self, step: Callable[[], Job]) -> list[Any]:
        try:
            self.job, self.lost = step(), []
        except StopIteration as end:
            self.life = self.job = None
            return [end.value]
        self._send()
        return []

    def _send(self) -> None:
        with contextlib.suppress(ConnectionError):  # a worker that died idle is noticed by the next receive
            self.pipe.send(self.job)

    def _receive(self) -> Result | None:
        """The result, or None where the worker died and the job was given to a new one."""
        try:
            answer: Result | Exception = self.pipe.recv()
        except (EOFError, OSError):  # the latter where it died in the middle of its answer
            return self._bury()
        if isinstance(answer, DeviceLost):
            self.process.kill()
            return self._bury(str(answer).partition("; ")[0])
        if isinstance(answer, Exception):
            raise answer
        return replace(answer, lost=tuple(self.lost))

    def _bury(self, reason: str | None = None) -> Result | None:
        self.process.join()
        self.lost.append(reason or f"exit code {self.process.exitcode}")
        self._start()
        if len(self.lost) >= DEATHS_ALLOWED:
            return Result(error=f"its worker died {len(self.lost)} times (last {self.lost[-1]})", lost=tuple(self.lost))
        warn(self.lost[-1])
        self._send()
        return None

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()


def warn(reason: str) -> None:
    """Says that a worker is lost, and what becomes of its candidate."""
    logging.getLogger("evomerge").warning("a worker was lost (%s): its candidate is run again in a new process", reason)


def _ready(lanes: Sequence[_Lane]) -> list[_Lane]:
    ready = wait([lane.pipe for lane in lanes])
    return [lane for lane in lanes if lane.pipe in ready]


def _serve(pipe: Connection, make: Callable[[], Worker]) -> None:
    """What a worker process does: make its lab, then answer jobs until told to stop or until the controller is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the controller decides what an interrupt means
    try:
        worker = make()
    except EvomergeError as error:
        pipe.send(ScoringError(str(error)))
        return
    with contextlib.suppress(EOFError, BrokenPipeError):
        while (job := pipe.recv()) is not None:
            try:
                pipe.send(attempt(worker, job))
            except DeviceLost as lost:
                pipe.send(lost)
                return  # without closing the worker: it would ask the device
    worker.close()


def make_executor(make: Callable[[], Worker], workers: int, seats: Sequence[Seat] = ()) -> Executor:
    """In this process where one worker has no GPU: one that has may lose it, and only the end of its process gives it back."""
    return InProcess(make) if workers == 1 and not gpus() else Pool(make, workers, seats)
