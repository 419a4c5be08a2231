"""The kept-th largest magnitude of a delta in one pass over it, where nothing about it is to be kept.

A sample says between which two magnitudes it must lie; the pass counts what is larger than both and collects what lies
between. Where the sample misled (few elements, many equal ones), nobody is told a wrong number: the answer is None.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evomerge.kernels.native import Request

LEAST, MOST = 1 << 20, 1 << 31  # elements below which a table is as quick, and beyond which a position takes more than 32 bits
SAMPLE = (1 << 14, 1 << 16)  # elements that are looked at first, from and to: a 64th part
RUN, BLOCK = 16, 512  # neighbours of a sample, elements of a block: as in native.cpp
DEVIATIONS = 6  # of a sample's quantile, on either side: neighbours are alike, so it is less sure than it seems
SMALLEST = np.float32(1e-45)  # above 0
ROOM = 6  # at most this part of all elements is collected: in bf16 many deltas are equal


def largest(base: Tensor | None, source: Tensor, kept: int) -> tuple[float, NDArray[np.int64], int] | None:
    """The magnitude of source - base that `kept` elements reach, the positions that equal it, how many of those are kept.

    None where the sample does not say: then a table has to be made.
    """
    size = source.numel()
    if not LEAST <= size < MOST or not 0 < kept < size:
        return None
    request = Request(base, [source], None, subtract=True)
    low, high = _bracket(request, size, kept / size)
    above, sizes, positions = _between(request, max(low, SMALLEST), high, size // ROOM + BLOCK)
    if sizes is None:
        return None
    if low == 0 and kept > above + len(sizes):  # zeros need not be told apart: what is larger is kept
        return 0.0, np.empty(0, np.int64), 0
    if not 0 < (rank := kept - above) <= len(sizes):
        return None
    if low == high:
        return float(low), positions.astype(np.int64), rank
    threshold = np.partition(sizes, len(sizes) - rank)[len(sizes) - rank]
    room = rank - int(np.count_nonzero(sizes > threshold))
    return float(threshold), positions[sizes == threshold].astype(np.int64), room


def _bracket(request: Request, size: int, share: float) -> tuple[np.float32, np.float32]:
    """Two magnitudes between which the one lies that a share of all elements reaches."""
    step = max(size * RUN // min(max(size // 64, SAMPLE[0]), SAMPLE[1]), RUN) | 1  # odd: it walks through a matrix' columns
    runs = -(-size // step)
    sample = np.empty(RUN * runs, np.float32)
    request.function("sample")(request.all(), ctypes.c_int64(step), _pointer(sample))
    sample = sample[: RUN * (runs - 1) + min(RUN, size - (runs - 1) * step)]
    sample.sort()
    width = DEVIATIONS * math.sqrt(share * (1 - share) / len(sample))
    first, last = int(len(sample) * (1 - share - width)), int(len(sample) * (1 - share + width)) + 1
    return np.float32(0) if first <= 0 else sample[first], np.float32(np.inf) if last >= len(sample) else sample[last]


def _between(
    request: Request, low: np.float32, high: np.float32, room: int
) -> tuple[int, NDArray[np.float32] | None, NDArray[np.int32]]:
    """How many magnitudes are larger, and those between with their positions; None where they are more than there is room for."""
    sizes, positions, told = np.empty(room, np.float32), np.empty(room, np.int32), np.zeros(2, np.int64)
    bounds = [ctypes.c_int32(int(end.view(np.int32))) for end in (low, high)]
    pointers = (_pointer(array) for array in (sizes, positions, told))
    request.function("between")(request.all(), *bounds, ctypes.c_int64(room), *pointers)
    above, found = map(int, told)
    return above, None if found >= room else sizes[:found], positions[:found]


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)
