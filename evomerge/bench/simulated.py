"""Studies whose models are points of a landscape and whose workers live in virtual time: the controller alone is real.

Each job is scored at once, its result held back until its worker would have it; meanwhile the controller goes on. What the
controller takes by the wall is added to the virtual clock, so that a slow one is seen as workers that stand idle.
"""

from __future__ import annotations

import heapq
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.document import dump_yaml
from evomerge.recipe import Curve, Recipe
from evomerge.scoring.landscape import Landscape
from evomerge.scoring.scores import Row, Scores
from evomerge.study.executor import Job, Life, Result, T, Worker, attempt

SOURCES = ("a", "b", "c")
DOCUMENTS = """
def documents(task):
    return [f"{task} {i}" for i in range(4000)]

def score(weights, config, task, documents):
    raise RuntimeError("landscapes are scored without a model")
"""


def write_experiment(folder: Path, dims: int, **search: Any) -> Path:
    """An experiment over `dims` numbers, spread over the layers of tiny sources: everything real but what a model is worth."""
    import torch
    from safetensors.torch import save_file

    layers = dims // len(SOURCES)
    for place, name in enumerate(("base", *SOURCES)):
        (folder / name).mkdir()
        tensors = {f"layers.{i}.w": torch.full((2,), float(place)) for i in range(layers)}
        save_file(tensors, folder / name / "model.safetensors")
    weight = {name: {"range": [0.0, 1.0], "points": layers, "start": 0.5} for name in SOURCES}
    data = {
        "recipe": {
            "base": "base",
            "sources": {name: name for name in SOURCES},
            "rules": [{"match": "*", "method": "task_arithmetic", "weight": weight}],
        },
        "suite": {"tasks": {"first": 1.0, "second": 1.0}, "rungs": [96, 384, 960], "select": 240, "sealed": 600},
        "scoring": {"with": "function", "function": "landscape:score", "documents": "landscape:documents"},
        "search": {"baselines": False, **search},
    }
    (folder / "landscape.py").write_text(DOCUMENTS)
    (folder / "space.yaml").write_text(dump_yaml(data))
    return folder / "space.yaml"


def point(recipe: Recipe) -> dict[str, float]:
    """A recipe as a point of the landscape: its weights, source by source and layer by layer."""
    weights = recipe.rules[0].knobs.get("weight")
    curves = list(weights.values()) if isinstance(weights, dict) else [weights]
    numbers = [value for curve in curves if isinstance(curve, Curve) for row in curve.points for value in row]
    return {f"x{i:03d}": value for i, value in enumerate(numbers)}


@dataclass
class Points:
    """A worker that scores points: one landscape a task, and a file for each model that it is told to write."""

    landscapes: dict[str, Landscape]
    base: Path
    saved: dict[Path, Recipe] = field(default_factory=dict)

    def evaluate(self, job: Job) -> Result:
        recipe = self.saved[job.model] if job.model else job.recipe
        assert recipe is not None
        if job.save:
            shutil.copytree(self.base, job.save)
            self.saved[job.save] = recipe
        place = self.place(recipe)
        return Result(Scores(tuple(row for task, docs in job.documents.items() for row in self._rows(task, place, docs))))

    def place(self, recipe: Recipe) -> dict[str, float]:
        """Where a recipe lies; the base, which has no weights of the space, in the middle of it, each source somewhere else."""
        landscape = next(iter(self.landscapes.values()))
        found = point(recipe)
        if len(found) == landscape.dims:
            return found
        name = Path(recipe.base.model).name
        middle = np.full(landscape.dims, 0.5)
        where = middle if name == "base" else np.random.default_rng([*name.encode()]).uniform(0.2, 0.8, landscape.dims)
        return dict(zip(landscape.names, where.tolist(), strict=True))

    def _rows(self, task: str, place: dict[str, float], docs: Sequence[int]) -> Iterator[Row]:
        values = self.landscapes[task].score(place, docs)
        yield from (Row(task, doc, f"{task} {doc}", float(value)) for doc, value in zip(docs, values, strict=True))

    def close(self) -> None: ...


@dataclass
class Phase:
    """What happened from the first to the last life of one run."""

    seconds: float = 0.0  # of virtual time, from the moment at which every worker had its first job
    controller: float = 0.0  # of real time
    processor: float = 0.0  # of it on the processor
    idle: float = 0.0  # summed over workers, in virtual seconds
    lives: int = 0


class Simulated:
    """Lanes in virtual time around one real worker; `takes` says how long a job keeps its lane.

    `clock` counts the controller: the wall, or `time.process_time` on a machine that others use too (no waiting for a disk then).
    """

    def __init__(
        self, worker: Worker, workers: int, takes: Callable[[Job], float], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.worker, self.workers, self.takes, self.clock = worker, workers, takes, clock
        self.now = 0.0
        self.phases: list[Phase] = []

    def run(self, lives: Iterator[Life[T]]) -> Iterator[T]:
        self.phase = Phase()
        self.phases.append(self.phase)
        begun, free = self.now, [self.now] * self.workers
        busy: list[tuple[float, int, Life[T], Result]] = []
        number = 0
        self._controller_begins()
        while True:
            while free and (life := next(lives, None)) is not None:
                number += 1
                busy_since = free.pop()
                yield from self._step(busy, busy_since, number, life, None, free)
            if not busy:
                break
            self._controller_ends()
            finish, key, life, result = heapq.heappop(busy)
            self.now = max(self.now, finish)
            self._controller_begins()
            yield from self._step(busy, finish, key, life, result, free)
        self._controller_ends()
        self.phase.seconds = self.now - begun

    def _step(
        self,
        busy: list[tuple[float, int, Life[T], Result]],
        since: float,
        key: int,
        life: Life[T],
        result: Result | None,
        free: list[float],
    ) -> Iterator[T]:
        """A life goes on in the lane that has been free since; its lane is free again where it ends."""
        try:
            job = next(life) if result is None else life.send(result)
        except StopIteration as end:
            free.append(since)
            self.phase.lives += 1
            yield end.value
            return
        self._controller_ends()
        self.phase.idle += self.now - since
        heapq.heappush(busy, (self.now + self.takes(job), key, life, attempt(self.worker, job)))
        self._controller_begins()

    def _controller_begins(self) -> None:
        self._since = self.clock(), time.perf_counter(), time.process_time()

    def _controller_ends(self) -> None:
        now = self.clock(), time.perf_counter(), time.process_time()
        spent, wall, processor = (b - a for a, b in zip(self._since, now, strict=True))
        self.now += spent
        self.phase.controller += wall
        self.phase.processor += processor

    def close(self) -> None: ...


def lognormal(per_document: float, load: float, spread: float = 0.5, seed: int = 0) -> Callable[[Job], float]:
    """Seconds of a job: so many to load a candidate, so many a document, and now and then much more."""
    rng = np.random.default_rng(seed)

    def takes(job: Job) -> float:
        documents = sum(map(len, job.documents.values()))
        return float((load + per_document * documents) * rng.lognormal(-(spread**2) / 2, spread))

    return takes
