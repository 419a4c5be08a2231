"""Whole merges, from files to files, beside mergekit and beside `cp`: CPU seconds beyond start-up, and peak memory.

Each merge is a process of its own with one thread; what the same command needs for a model of a few kilobytes is its start-up.
Wall time is not compared: it is the disk's and the neighbours'.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evomerge.bench import machine
from evomerge.bench.llamas import MILLIONS, TINY, Shape, tensors_of, write_family
from evomerge.bench.process import Cost, run
from evomerge.document import dump_yaml

SOURCES = ("one", "two", "three")
WEIGHT, KEPT, T = 0.4, 0.3, 0.3
GOALS = {"ties": 20.0, "dare_ties": 5.0, "della": 5.0, "linear": 1.0, "slerp": 1.0}  # times fewer CPU seconds than mergekit

Command = Callable[[str, Path], list[str]]  # of a method and the folder of its models; writes to the folder's "out"


def bench_disk(
    mergekit: Path | None = None, shape: Shape = MILLIONS, methods: Sequence[str] = tuple(GOALS), runs: int = 1
) -> Iterator[str]:
    """Lines of a table, of the cheapest of some runs each; `mergekit` is an interpreter that has it, or None.

    Raises EvomergeError where a merge fails.
    """
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as made:
        root = Path(made)
        write_family(root / "tiny", TINY, SOURCES)
        size = write_family(root / "big", shape, SOURCES)
        tensors = [2 * rows * (rest[0] if rest else 1) for rows, *rest in tensors_of(shape).values()]
        room = max(tensors) * (len(SOURCES) + 2) + 300_000_000
        yield f"{machine()}, one thread, {size / 1e6:.0f} M parameters in bf16, base and {len(SOURCES)} fine-tunes"
        yield f"  memory may be {room / 1e6:.0f} MB: the largest tensor times (sources + 2), and 300 MB"
        for method in methods:
            yield _line(method, root, mergekit, runs)


def _line(method: str, root: Path, mergekit: Path | None, runs: int) -> str:
    copied = min(_copy(root / "big", _models(method)) for _ in range(runs))
    ours, cost = _measured(_ours, method, root, runs)
    text = f"  {method:<10} evomerge {ours:6.2f} s, {cost.anonymous / 1e6:5.0f} MB, {ours / copied:4.1f} × cp of its inputs"
    if mergekit is None:
        return text
    theirs, other = _measured(lambda *where: [str(mergekit), *_mergekit(*where)], method, root, runs)
    ratio = theirs / max(ours, 1e-9)
    met = "reached" if ratio >= GOALS[method] else "missed"
    return f"{text} | mergekit {theirs:6.2f} s, {other.anonymous / 1e6:5.0f} MB | {ratio:.1f} × (goal {GOALS[method]:g}: {met})"


def _measured(command: Command, method: str, root: Path, runs: int) -> tuple[float, Cost]:
    """CPU seconds beyond the start, and the cheapest run."""
    start, whole = (_cheapest(command(method, root / size), root / size / "out", runs) for size in ("tiny", "big"))
    return max(whole.seconds - start.seconds, 0.0), whole


def _cheapest(command: Sequence[str], out: Path, runs: int) -> Cost:
    costs = []
    for _ in range(runs):
        costs.append(run(command))
        shutil.rmtree(out)
    return min(costs, key=lambda cost: cost.seconds)


def _copy(folder: Path, models: Sequence[str]) -> float:
    """CPU seconds of a plain copy of these models."""
    (folder / "out").mkdir()
    files = {str(folder / model / "model.safetensors"): str(folder / "out" / model) for model in models}
    costs = [run(["cp", "--reflink=never", *pair]) for pair in files.items()]
    shutil.rmtree(folder / "out")
    return max(sum(cost.seconds for cost in costs), 1e-3)


def _models(method: str) -> tuple[str, ...]:
    """The models that a method reads."""
    return {"slerp": ("base", "one"), "linear": SOURCES}.get(method, ("base", *SOURCES))


def _ours(method: str, folder: Path) -> list[str]:
    knobs: dict[str, dict[str, Any]] = {
        "linear": {"weight": WEIGHT},
        "slerp": {"t": T, "sources": ["one"]},
        "ties": {"weight": WEIGHT, "density": KEPT},
        "dare_ties": {"weight": WEIGHT, "drop_rate": 1 - KEPT},
        "della": {"weight": WEIGHT, "density": KEPT},
    }
    sources = {name: str(folder / name) for name in _models(method) if name != "base"}
    recipe = {"base": str(folder / "base"), "sources": sources, "rules": [{"match": "*", "method": method, **knobs[method]}]}
    file = folder / f"{method}.yaml"
    file.write_text(dump_yaml({"recipe": recipe}))
    return [sys.executable, "-m", "evomerge.cli", "merge", str(file), "--out", str(folder / "out")]


def _mergekit(method: str, folder: Path) -> list[str]:
    knobs = {"weight": WEIGHT, **({} if method == "linear" else {"density": KEPT})}
    config: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    if method == "slerp":
        config |= {"models": [{"model": str(folder / name)} for name in _models(method)], "parameters": {"t": T}}
    else:
        config["models"] = [{"model": str(folder / name), "parameters": knobs} for name in SOURCES]
    if method != "linear":
        config["base_model"] = str(folder / "base")
    file = folder / f"mergekit-{method}.yaml"
    file.write_text(dump_yaml(config))
    return ["-m", "mergekit.scripts.run_yaml", str(file), str(folder / "out"), "--no-copy-tokenizer"]
