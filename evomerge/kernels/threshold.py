"""How many magnitudes of a task vector lie in each bin, and which lie in one of them. See `methods/threshold.py`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
# (what Triton compiles has no Python types)

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from evomerge.kernels.combine import EXACT, block_of

BINS = 1 << 15
COPIES = 64  # of the table, so that blocks seldom wait for one another's additions: magnitudes crowd in a few hundred bins


@triton.jit
def _magnitude(base, source, position, inside, SUBTRACT: tl.constexpr):
    """|source - base|, float32"""
    delta = tl.load(source + position, mask=inside, other=0.0).to(tl.float32)
    if SUBTRACT:
        delta -= tl.load(base + position, mask=inside, other=0.0).to(tl.float32)
    return tl.abs(delta)


@triton.jit
def _counts(base, source, table, size, SUBTRACT: tl.constexpr, COPIES: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr):
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = position < size
    size_of = _magnitude(base, source, position, inside, SUBTRACT)
    bin = (size_of.to(tl.uint32, bitcast=True) >> 16).to(tl.int32)
    copy = (tl.program_id(0) % COPIES) * BINS
    tl.atomic_add(table + copy + bin, tl.full((BLOCK,), 1, tl.int32), mask=inside, sem="relaxed")


@triton.jit
def _members(base, source, sizes, positions, cursor, bin, size, SUBTRACT: tl.constexpr, BLOCK: tl.constexpr):
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = position < size
    size_of = _magnitude(base, source, position, inside, SUBTRACT)
    here = inside & ((size_of.to(tl.uint32, bitcast=True) >> 16).to(tl.int32) == bin)
    rank = tl.cumsum(here.to(tl.int32), axis=0)
    first = tl.atomic_add(cursor, tl.sum(here.to(tl.int32), axis=0).to(tl.int64))  # where this block's members go
    slot = first + rank - 1
    tl.store(sizes + slot, size_of, mask=here)
    tl.store(positions + slot, position, mask=here)


def counts(base: Tensor | None, source: Tensor) -> NDArray[np.int64]:
    """How many magnitudes of source - base lie in each bin, [BINS]."""
    size = source.numel()
    table = torch.zeros(COPIES, BINS, dtype=torch.int32, device=source.device)
    if size:
        block = block_of(size)
        _counts[(triton.cdiv(size, block),)](
            *_flat(base, source), table, size, SUBTRACT=base is not None, COPIES=COPIES, BINS=BINS, BLOCK=block, **EXACT
        )
    counted: NDArray[np.int64] = table.sum(0, dtype=torch.int64).cpu().numpy()
    return counted


def members(base: Tensor | None, source: Tensor, bin: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Magnitudes and positions of a bin's elements, which are `count`, by position."""
    size, device = source.numel(), source.device
    sizes = torch.empty(count, dtype=torch.float32, device=device)
    positions = torch.empty(count, dtype=torch.int64, device=device)
    if count:
        block = block_of(size)
        _members[(triton.cdiv(size, block),)](
            *_flat(base, source), sizes, positions, torch.zeros(1, dtype=torch.int64, device=device), bin, size,
            SUBTRACT=base is not None, BLOCK=block, **EXACT,
        )  # fmt: skip
    positions, order = positions.sort()  # blocks come in any order
    return sizes[order].cpu().numpy(), positions.cpu().numpy()


def _flat(base: Tensor | None, source: Tensor) -> tuple[Tensor, Tensor]:
    source = source.contiguous()
    return source if base is None else base.contiguous(), source
