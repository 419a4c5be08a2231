"""Workers on several machines: actors of a Ray cluster. One that is lost costs no trial, one that is slow holds nobody.

Ray moves jobs and results by pickle between machines that trust each other. A cluster of this machine alone listens on the
loopback interface; one of several belongs into a network of its own. No dashboard is started.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple

from evomerge import __version__
from evomerge.errors import EvomergeError, MissingExtra, ScoringError, StudyError
from evomerge.study.executor import DEATHS_ALLOWED, LOST, DeviceLost, Job, Life, Result, T, Worker, attempt

LOOPBACK = "127.0.0.1"
LOCAL = "local"  # in place of an address: a cluster of this machine alone, which ends with the search
START = "ray start --head --node-ip-address ADDRESS --port 6379 --include-dashboard false"
PATIENCE = 5.0  # seconds for workers to close what they hold
STARTS_ALLOWED = 3  # workers in a row, for each lane, that die before they have begun


class Greeting(NamedTuple):
    """What a worker says when it has begun, and why it cannot work, if so."""

    host: str
    version: str
    refused: str | None


class Actor:
    """A worker as Ray holds it: a process on whatever machine has room, which keeps nothing that cannot be made anew."""

    def __init__(self, make: Callable[[], Worker], study: Path | None) -> None:
        self.refused: str | None = None
        try:
            if study is not None and not study.is_dir():
                raise StudyError(f"{study}: cannot be seen from {platform.node()}; --out must be a folder all machines share")
            self.worker = make()
        except EvomergeError as error:
            self.refused = str(error)

    def greet(self) -> Greeting:
        return Greeting(platform.node(), __version__, self.refused)

    def evaluate(self, job: Job) -> Result:
        try:
            return attempt(self.worker, job)
        except DeviceLost:
            os._exit(LOST)  # what Ray sees is a dead actor, whose errand another takes

    def close(self) -> None:
        if self.refused is None:
            self.worker.close()


@dataclass
class Errand(Generic[T]):
    """A life, the job that it waits for, and how many workers that job has cost."""

    life: Life[T]
    job: Job | None = None
    deaths: int = 0
    lost: tuple[str, ...] = ()  # what each of them died of

    def step(self, result: Result | None) -> list[T]:
        """Go on with a result, None at the beginning; a list of what the life returned, if it ended."""
        try:
            self.job = next(self.life) if result is None else self.life.send(result)
            self.deaths, self.lost = 0, ()
        except StopIteration as end:
            return [end.value]
        return []


class Cluster:
    """A lane for each of several actors. Those that the cluster has no room for yet join when a machine does.

    Args:
        make: makes a worker; travels to the machines by pickle.
        address: of the cluster's head, `auto` for the one this machine belongs to, `local` for one of its own.
        workers: how many; None takes one for each GPU, or CPU where there is none.
        devices: GPUs that one worker takes, where the cluster has any.
        study: a folder that every machine must see.
    """

    def __init__(
        self,
        make: Callable[[], Worker],
        address: str,
        workers: int | None = None,
        *,
        devices: int = 1,
        study: Path | None = None,
    ) -> None:
        self.ray = connect(address)
        self.make, self.study = make, study
        room = self.ray.cluster_resources()
        gpus = room.get("GPU", 0) >= devices
        needs: dict[str, float] = {"num_cpus": 0, "num_gpus": devices} if gpus else {"num_cpus": 1}
        self.actor = self.ray.remote(max_restarts=0, max_task_retries=0, **needs)(Actor)
        self.workers = workers or max(1, int(room["GPU"] // devices if gpus else room.get("CPU", 1)))
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, Errand[Any]]] = {}  # results that are awaited, from whom, and whose
        self.coming: dict[Any, Any] = {}  # greetings that are awaited, and from whom
        self.lost: list[Errand[Any]] = []  # errands whose worker died; the next idle one takes them
        self.failed_starts = 0
        for _ in range(self.workers):
            self._hire()

    def run(self, lives: Iterator[Life[T]]) -> Iterator[T]:
        exhausted = False
        while True:
            while self.idle and (self.lost or not exhausted):
                if self.lost:
                    self._send(self.idle.pop(), self.lost.pop(0))
                elif (life := next(lives, None)) is None:
                    exhausted = True
                else:
                    yield from self._go_on(self.idle.pop(), Errand(life), None)
            if exhausted and not self.busy and not self.lost:
                return
            yield from self._wait()

    def _wait(self) -> list[Any]:
        """Until the first of all that is awaited has come; what lives returned that have ended by it."""
        ready, _ = self.ray.wait([*self.busy, *self.coming], num_returns=1)
        if ready[0] in self.coming:
            self._welcome(ready[0])
            return []
        return self._take(ready[0])

    def _send(self, actor: Any, errand: Errand[Any]) -> None:
        self.busy[actor.evaluate.remote(errand.job)] = actor, errand

    def _go_on(self, actor: Any, errand: Errand[T], result: Result | None) -> list[T]:
        """A life's next job stays with the worker that has its model loaded."""
        ended = errand.step(result)
        if ended:
            self.idle.append(actor)
        else:
            self._send(actor, errand)
        return ended

    def _take(self, reference: Any) -> list[Any]:
        """A result, or the news that whoever owed it is gone."""
        actor, errand = self.busy.pop(reference)
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            return self._bury(actor, errand, error)
        return self._go_on(actor, errand, replace(result, lost=errand.lost))

    def _bury(self, actor: Any, errand: Errand[T], error: Exception) -> list[T]:
        """A new worker is hired, and the job begins anew with whoever is idle first; nothing of the lost one is waited for."""
        self._dismiss(actor)
        self._hire()
        errand.deaths += 1
        errand.lost += (type(error).__name__,)
        gone = f"its worker died {errand.deaths} times (the last by {type(error).__name__})"
        ended = errand.step(Result(error=gone)) if errand.deaths >= DEATHS_ALLOWED else []
        if not ended:
            self.lost.append(errand)
        return ended

    # --- workers come and go

    def _hire(self) -> None:
        actor = self.actor.remote(self.make, self.study)
        self.coming[actor.greet.remote()] = actor

    def _welcome(self, reference: Any) -> None:
        """A worker that has begun; one that died before is replaced, unless that is all that workers do."""
        actor = self.coming.pop(reference)
        try:
            greeting: Greeting = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts > STARTS_ALLOWED * self.workers:
                text = " ".join(str(error).split())[:300]
                raise ScoringError(f"--ray: {self.failed_starts} workers in a row died before they began: {text}") from None
            self._dismiss(actor)
            self._hire()
            return
        if greeting.refused is not None:
            raise ScoringError(greeting.refused)
        if greeting.version != __version__:
            where = f"{greeting.host} has evomerge {greeting.version}, this machine {__version__}"
            raise StudyError(f"--ray: {where}; install the same on both")
        self.failed_starts = 0
        self.idle.append(actor)

    def _dismiss(self, actor: Any) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.kill(actor)

    def close(self) -> None:
        """Idle workers close what they hold; those at work, and whoever is slow, are ended."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            closing = [actor.close.remote() for actor in self.idle]
            if closing:
                self.ray.wait(closing, num_returns=len(closing), timeout=PATIENCE)
        for actor in (*self.idle, *(actor for actor, _ in self.busy.values()), *self.coming.values()):
            self._dismiss(actor)
        self.ray.shutdown()


def refuse_missing() -> None:
    """Raises MissingExtra where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra('--ray: Ray is not installed: pip install "evomerge[ray]"')


def connect(address: str) -> Any:
    """The module `ray`, connected once. Raises MissingExtra without it, StudyError where no cluster answers."""
    refuse_missing()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster begun here: scoring is the work, nothing gives way to it
    host = address.rpartition(":")[0]
    if address == LOCAL or host in (LOOPBACK, "localhost"):
        # otherwise Ray replaces 127.0.0.1 by an address that others reach, and listens on every interface
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        try:
            ray.init(address=LOCAL, include_dashboard=False, _node_ip_address=LOOPBACK, **quiet)
        except Exception as error:  # Ray's own words for a machine that is too busy, of no kind of their own
            text = " ".join(str(error).split())[:200]
            raise StudyError(f"--ray {LOCAL}: no cluster can be started on this machine ({text})") from None
        if ray.util.get_node_ip_address() != LOOPBACK:
            ray.shutdown()
            raise StudyError("--ray local: Ray was imported before it could be told to listen on 127.0.0.1 only; import it later")
        return ray
    _refuse_silence(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise StudyError(f"--ray {address}: no cluster can be joined ({text}); start one with: {START}") from None
    return ray


def _refuse_silence(address: str) -> None:
    """Ray itself would try for most of a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise StudyError(f"--ray {address}: nobody answers there ({error}); start a cluster with: {START}") from None
