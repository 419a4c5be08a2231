"""How long things take: a whole search, a candidate from its recipe to live weights, the kernels (with torch alone)."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path


def bench_search(space: str | Path, runs: int = 3, workers: int | None = None) -> str:
    """Run a search several times from nothing, each in a process and folder of its own; seconds by the wall, medians last."""
    rows = []
    for run in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_one_search(Path(space), Path(folder) / "study", workers))
        rows[-1]["run"] = run
    lines = [f"{machine()}, {runs} runs of {space}"]
    lines += [
        f"run {row['run']}: {row['seconds']:.1f} s, ending {row['ending']}, {row['trials']} trials, "
        f"{row['documents']:,.0f} documents, the loop itself {100 * row['loop'] / row['seconds']:.1f} %"
        for row in rows
    ]
    seconds = statistics.median(row["seconds"] for row in rows)
    rate = statistics.median(row["documents"] / row["seconds"] for row in rows)
    return "\n".join([*lines, f"median: {seconds:.1f} s, {rate:.0f} documents a second"])


def _one_search(space: Path, out: Path, workers: int | None) -> dict[str, float]:
    command = [sys.executable, "-m", "evomerge.cli", "search", str(space), "--out", str(out), "--log", "quiet"]
    begun = time.monotonic()
    ended = subprocess.run(command + (["--workers", str(workers)] if workers else []), stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begun
    certificate, clock = (json.loads((out / name).read_text()) for name in ("certificate.json", "clock.json"))
    return {
        "seconds": seconds,
        "ending": ended.returncode,
        "trials": certificate["trials"],
        "documents": certificate["documents"],
        "loop": clock["loop"],
    }


def bench_merge(space: str | Path, candidates: int = 30) -> str:
    """Milliseconds from a recipe to live weights, over recipes drawn from a space; the first, which fills the caches, apart."""
    import optuna
    import torch

    from evomerge.candidate import live
    from evomerge.candidate.stream import Sources, materialize
    from evomerge.study.experiment import Experiment
    from evomerge.study.samplers import make_sampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    experiment = Experiment.read(space)
    study = optuna.create_study(sampler=make_sampler("random", seed=0, space=experiment.space.distributions()))
    start = experiment.space.build(experiment.space.start())
    sources, times = Sources(resident=True), []
    module = live.module(sources.checkpoint(start.base.model).config)
    for _ in range(candidates + 1):
        recipe = replace(experiment.space.build(study.ask(experiment.space.distributions()).params), heal=None)
        begun = time.perf_counter()
        live.load(materialize(recipe, sources), module)
        times.append(1000 * (time.perf_counter() - begun))
    first, rest = times[0], sorted(times[1:])
    return (
        f"{machine()}, {torch.get_num_threads()} threads, {sum(p.numel() for p in module.parameters()):,} parameters\n"
        f"recipe to live weights: first {first:.0f} ms, then median {statistics.median(rest):.1f} ms, "
        f"from {rest[0]:.1f} to {rest[-1]:.1f} ms over {candidates} candidates"
    )


def machine() -> str:
    """The machine's processor, for a table of figures."""
    try:
        models = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        return f"{len(models)} × {models[0]}"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
