"""Lengths and dot product of two tensors in one pass, in float64; the rotation is `combine`'s. See `methods/slerp.py`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
# (what Triton compiles has no Python types)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evomerge.kernels.combine import block_of


@triton.jit
def _products(a, b, partial, size, BLOCK: tl.constexpr):
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = position < size
    x = tl.load(a + position, mask=inside, other=0.0).to(tl.float64)
    y = tl.load(b + position, mask=inside, other=0.0).to(tl.float64)
    row = partial + tl.program_id(0).to(tl.int64) * 3
    tl.store(row, tl.sum(x * x, axis=0))
    tl.store(row + 1, tl.sum(x * y, axis=0))
    tl.store(row + 2, tl.sum(y * y, axis=0))


def products(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """⟨a, a⟩, ⟨a, b⟩, ⟨b, b⟩: a sum for each block, and their sum."""
    size = a.numel()
    if not size:
        return 0.0, 0.0, 0.0
    block = block_of(size)
    partial = torch.empty(triton.cdiv(size, block), 3, dtype=torch.float64, device=a.device)
    _products[(len(partial),)](a.contiguous(), b.contiguous(), partial, size, BLOCK=block)
    aa, ab, bb = partial.sum(0).tolist()
    return aa, ab, bb
