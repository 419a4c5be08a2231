"""What the controller costs: milliseconds a trial for each sampler, and how long workers would wait for it."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from evomerge.bench.simulated import Phase, Points, Simulated, lognormal, write_experiment
from evomerge.scoring.landscape import Landscape
from evomerge.scoring.suite import split
from evomerge.study.clock import Clock
from evomerge.study.experiment import Experiment
from evomerge.study.loop import Loop
from evomerge.study.record import Record, held
from evomerge.study.samplers import SAMPLERS
from evomerge.study.watch import Nobody

SLOW = {"gp": 20, "tpe": 100}  # trials where a trial takes a second or more
PER_DOCUMENT, LOAD = 0.05, 2.0  # seconds on a GPU: a model of 7 billion parameters that writes 100 tokens, batched


def bench_loop(dims: int = 300, workers: int = 64, trials: int = 300, samplers: Sequence[str] = ()) -> Iterator[str]:
    """A line for each sampler: asking, building, racing, telling and recording, all real; only the scoring is simulated."""
    yield f"{dims} dimensions, {workers} workers; a document takes {PER_DOCUMENT} s, a candidate {LOAD} s more"
    yield f"{'sampler':8} {'trials':>6} {'ms a trial':>10} {'of CPU':>7} {'trials a second':>15} {'workers idle':>12}"
    for name in samplers or SAMPLERS:
        simulate(name, dims, 2, 3)  # what is imported at its first use
        phase = simulate(name, dims, workers, min(trials, SLOW.get(name, trials)))
        each, processor = (1000 * seconds / phase.lives for seconds in (phase.controller, phase.processor))
        yield (
            f"{name:8} {phase.lives:6} {each:10.1f} {processor:7.1f} {phase.lives / phase.seconds:15.2f}"
            f" {phase.idle / (workers * phase.seconds):12.1%}"
        )


def simulate(
    sampler: str, dims: int, workers: int, trials: int, seed: int = 0, clock: Callable[[], float] = time.perf_counter
) -> Phase:
    """The trials of one study by that sampler, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_experiment(Path(folder), dims, sampler=sampler, trials=trials, seed=seed)
        experiment = Experiment.read(path)
        tasks = experiment.suite.tasks
        catalogue = {task: [hashlib.sha256(f"{task} {i}".encode()).hexdigest() for i in range(4000)] for task in tasks}
        points = Points({task: Landscape(dims, seed=seed + i) for i, task in enumerate(tasks)}, Path(folder) / "base")
        executor = Simulated(points, workers, lognormal(PER_DOCUMENT, LOAD, seed=seed), clock)
        with held(Record.open(Path(folder) / "study", {}, resume=False)) as record:
            splits = split(experiment.suite, None, catalogue)
            Loop(experiment, record, splits, Clock(record), lambda: executor, Nobody()).run()
        return max(executor.phases, key=lambda phase: phase.lives)
