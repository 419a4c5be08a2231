"""How long one call takes: by the device's own clock on a GPU, by the thread's on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

ENOUGH = 0.4  # seconds of one measurement, and at most RUNS
RUNS = 30


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call: the median on a GPU, by its own clock; the least on a CPU, by the thread's where it is one."""
    function()
    cuda, times = torch.cuda.is_available(), list[float]()
    while len(times) < 3 or (sum(times) < ENOUGH and len(times) < RUNS):
        times.append(_on_gpu(function) if cuda else _on_cpu(function))
    return statistics.median(times) if cuda else min(times)


def _on_cpu(function: Callable[[], object]) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter  # others may be using the machine
    begun = clock()
    function()
    return clock() - begun


def _on_gpu(function: Callable[[], object]) -> float:
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch has no types for it
    begun.record()
    function()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) / 1000
