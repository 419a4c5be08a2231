"""Inner products of deltas in one pass, in float64, and sums with coefficients for each row. See `methods/vectors.py`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
# (what Triton compiles has no Python types)

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from evomerge import kernels
from evomerge.kernels.combine import EXACT, _rounded, block_of, takes

__all__ = ["gram", "gram_of_rows", "mix_rows", "takes"]

STRETCH = 8  # blocks whose products are summed before they are written


@triton.jit
def _delta(base, source, position, inside, SUBTRACT: tl.constexpr):
    delta = tl.load(source + position, mask=inside, other=0.0).to(tl.float32)
    if SUBTRACT:
        delta -= tl.load(base + position, mask=inside, other=0.0).to(tl.float32)
    return delta


@triton.jit
def _grams(base, sources, products, size, width, K: tl.constexpr, SUBTRACT: tl.constexpr, BLOCK: tl.constexpr):
    """Of each row the products of all pairs: a row read again comes from the cache."""
    row = tl.program_id(0).to(tl.int64)
    end = tl.minimum((row + 1) * width, size)
    for i in tl.static_range(K):
        for j in tl.static_range(i, K):
            total = tl.zeros((BLOCK,), tl.float64)
            for begin in range(row * width, end, BLOCK):
                position = begin + tl.arange(0, BLOCK)  # [BLOCK]
                x = _delta(base, sources[i], position, position < end, SUBTRACT).to(tl.float64)
                if i == j:
                    total += x * x
                else:
                    total += x * _delta(base, sources[j], position, position < end, SUBTRACT).to(tl.float64)
            product = tl.sum(total, axis=0)
            tl.store(products + (row * K + i) * K + j, product)
            tl.store(products + (row * K + j) * K + i, product)


@triton.jit
def _mix(
    base, sources, coefficients, merged, size, width,
    K: tl.constexpr, ADD: tl.constexpr, SUBTRACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = position < size
    own = coefficients + position // width * K  # [BLOCK]
    start = tl.zeros((BLOCK,), tl.float32)
    if ADD:
        start = tl.load(base + position, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        delta = tl.load(sources[k] + position, mask=inside, other=0.0).to(tl.float32)
        if SUBTRACT:
            delta -= start
        total += delta * tl.load(own + k, mask=inside, other=0.0)
    tl.store(merged + position, _rounded(start + total, merged.dtype.element_ty), mask=inside)


def gram(base: Tensor | None, sources: Sequence[Tensor], *, subtract: bool = True) -> Tensor:
    """⟨δᵢ, δⱼ⟩ of whole tensors, [K, K] in float64: of stretches, and their sum."""
    return gram_of_rows(base, sources, STRETCH * block_of(sources[0].numel()), subtract=subtract).sum(0)


def gram_of_rows(base: Tensor | None, sources: Sequence[Tensor], width: int, *, subtract: bool = True) -> Tensor:
    """⟨δᵢ, δⱼ⟩ of each row of `width` elements, [R, K, K] in float64; the last row may be shorter."""
    size, count, subtract = sources[0].numel(), len(sources), subtract and base is not None
    products = torch.empty(triton.cdiv(size, width), count, count, dtype=torch.float64, device=sources[0].device)
    if size:
        _grams[(len(products),)](
            *_flat(base, sources), products, size, width, K=count, SUBTRACT=subtract, BLOCK=block_of(width), **EXACT
        )
    return products


def mix_rows(
    base: Tensor | None, sources: Sequence[Tensor], coefficients: Tensor, *, subtract: bool = True, dtype: torch.dtype
) -> Tensor:
    """base + Σ coefficientₖ · δₖ, with `coefficients` for each of R rows, [R, K]."""
    size, device = sources[0].numel(), sources[0].device
    merged = kernels.result(sources[0].shape, torch.float32 if dtype == torch.float64 else dtype, device)
    if size:
        block = block_of(size)
        _mix[(triton.cdiv(size, block),)](
            *_flat(base, sources), coefficients.to(device, torch.float32).contiguous(), merged, size, size // len(coefficients),
            K=len(sources), ADD=base is not None, SUBTRACT=subtract and base is not None, BLOCK=block, **EXACT,
        )  # fmt: skip
    return merged.to(dtype)


def _flat(base: Tensor | None, sources: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    flat = tuple(source.contiguous() for source in sources)
    return flat[0] if base is None else base.contiguous(), flat
