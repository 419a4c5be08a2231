"""One pass over base and sources: subtract, sparsify, elect, weigh, normalise, add, round. See `methods/combine.py`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
# (what Triton compiles has no Python types)

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from evomerge.masks import Ballot, Drops, Keep, Trim

# The largest block: Triton's interpreter pays for every block, a GPU wants many
BLOCK = 1 << 17 if os.environ.get("TRITON_INTERPRET") == "1" else 1024
EXACT = {"enable_fp_fusion": False}  # a multiplication and an addition round twice, as they do in torch
ALL, TRIM, DROP = 0, 1, 2  # what `keep` asks for


@triton.jit
def _kept(source, base, limit, last, key, position, inside, SUBTRACT: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr):
    """What is kept of one delta, zero elsewhere; a NaN stays one whatever is dropped."""
    delta = tl.load(source + position, mask=inside, other=0.0).to(tl.float32)  # [BLOCK]
    if SUBTRACT:
        delta -= base
    if KEEP == 1:
        size = tl.abs(delta)
        delta = tl.where((size > limit) | ((size == limit) & (position <= last)), delta, delta * 0.0)
    if KEEP == 2:
        delta = tl.where(_uniform(key, tl.program_id(0), BLOCK) >= limit, delta, delta * 0.0)
    return delta


@triton.jit
def _uniform(key, block, BLOCK: tl.constexpr):
    """The numbers of `masks.draw`: word = Philox(key, position // 4)[position % 4]."""
    counter = block.to(tl.int64) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = tl.randint4x(key, counter)
    word = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(BLOCK)  # w0 w1 w2 w3 of each counter, side by side
    return tl.random.uint_to_uniform_float(word)


@triton.jit
def _rounded(x, KIND: tl.constexpr):
    """float32 to KIND, to nearest, ties to even; in integers for bfloat16, which the interpreter truncates."""
    if tl.bfloat16 != KIND:
        return x.to(KIND)
    bits = x.to(tl.uint32, bitcast=True)
    bits = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _combine(
    base, sources, merged, weights, voices, scales, limits, lasts, keys, size, rows,
    K: tl.constexpr, GROUPS: tl.constexpr, ADD: tl.constexpr, SUBTRACT: tl.constexpr, KEEP: tl.constexpr,
    ELECT: tl.constexpr, WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr, TIE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = position < size
    group = 0 if GROUPS == 1 else tl.minimum(position // rows, GROUPS - 1)
    start = tl.zeros((BLOCK,), tl.float32)
    if ADD:
        start = tl.load(base + position, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        delta = _kept(
            sources[k], start, tl.load(limits + k), tl.load(lasts + k), tl.load(keys + k), position, inside, SUBTRACT, KEEP, BLOCK
        )
        total += delta * tl.load(voices + group * K + k)
    if ELECT:
        sign = tl.where((total > 0) | ((total == 0) & (TIE > 0)), 1.0, -1.0)
        total = tl.zeros((BLOCK,), tl.float32)
        divisor = tl.zeros((BLOCK,), tl.float32)
        for k in tl.static_range(K):
            delta = _kept(
                sources[k],
                start,
                tl.load(limits + k),
                tl.load(lasts + k),
                tl.load(keys + k),
                position,
                inside,
                SUBTRACT,
                KEEP,
                BLOCK,
            )
            vote = delta * tl.load(voices + group * K + k) * sign
            weight = tl.load(weights + group * K + k)
            share = tl.where(vote < 0, 0.0, vote)  # |vote| where it agrees, a NaN where it is one
            total += share if WEIGHTED else share * weight
            divisor += tl.where(vote > 0, weight if WEIGHTED else 1.0, 0.0)
        total = total * sign
        if NORMALIZE:
            total = tl.div_rn(total, tl.where(divisor == 0, 1.0, divisor))
        total = total * tl.load(scales + group)
    tl.store(merged + position, _rounded(start + total, merged.dtype.element_ty), mask=inside)


def takes(keep: Keep = None, dtype: torch.dtype | None = None) -> bool:
    """Whether the kernel knows this kind of mask and this dtype of a result."""
    known = keep is None or isinstance(keep, Drops) or all(isinstance(trim, Trim) for trim in keep)
    return known and dtype in (None, torch.bfloat16, torch.float16, torch.float32, torch.float64)


def combine(
    base: Tensor | None,
    sources: Sequence[Tensor],
    weight: Sequence[Sequence[float]],  # [K][G]
    *,
    keep: Keep = None,
    ballot: Ballot | None = None,
    scale: Sequence[float] = (1.0,),  # [G]
    subtract: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """base + scale · Σ weightₖ · δₖ: the launcher."""
    flat, first = [source.contiguous() for source in sources], sources[0] if base is None else base
    wanted = dtype or first.dtype
    merged = torch.empty(first.shape, dtype=torch.float32 if wanted == torch.float64 else wanted, device=first.device)
    size, count = merged.numel(), math.lcm(len(scale), *map(len, weight))
    weights, voices, scales = _numbers(weight, scale, count, keep, ballot, first.device)
    limits, lasts, keys, kind = _limits(keep, len(flat), first.device)
    if size:
        block = block_of(size)
        _combine[(triton.cdiv(size, block),)](
            flat[0] if base is None else base.contiguous(), tuple(flat), merged,
            weights, voices, scales, limits, lasts, keys, size, max(size // count, 1),
            K=len(flat), GROUPS=count, ADD=base is not None, SUBTRACT=subtract and base is not None, KEEP=kind,
            ELECT=ballot is not None, WEIGHTED=ballot is None or ballot.weighted,
            NORMALIZE=ballot is not None and ballot.normalize, TIE=1 if ballot is None else ballot.tie, BLOCK=block, **EXACT,
        )  # fmt: skip
    return merged.to(wanted)


def block_of(size: int) -> int:
    """Elements of a block: a power of two."""
    return int(min(BLOCK, max(4, triton.next_power_of_2(size))))  # four words of random numbers at least


def _numbers(
    weight: Sequence[Sequence[float]],
    scale: Sequence[float],
    count: int,
    keep: Keep,
    ballot: Ballot | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """weights [G, K], what each source's delta is multiplied by before it is added or votes [G, K], scales [G]."""
    weights = torch.tensor([[w[g * len(w) // count] for w in weight] for g in range(count)], dtype=torch.float64)
    scales = torch.tensor([scale[g * len(scale) // count] for g in range(count)], dtype=torch.float64)
    rescale = torch.tensor(keep.rescale if isinstance(keep, Drops) else [1.0] * len(weight), dtype=torch.float64)
    if ballot is None:
        voices = weights * rescale * scales.unsqueeze(1)
    else:
        voices = weights * rescale if ballot.weighted else rescale.expand_as(weights)
    weights, voices, scales = (numbers.float().contiguous().to(device) for numbers in (weights, voices, scales))
    return weights, voices, scales


def _limits(keep: Keep, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int]:
    """For each source the magnitude or rate, the last position kept at that magnitude, the key; and the kind of mask."""
    limits, lasts, keys, kind = [0.0] * count, [0] * count, [0] * count, ALL
    if isinstance(keep, Drops):
        limits, keys, kind = list(keep.rates), [_signed(key) for key in keep.keys], DROP
    elif keep is not None:
        limits, lasts, kind = [trim.magnitude for trim in keep], [trim.last for trim in keep], TRIM
    at = torch.tensor(limits, dtype=torch.float32, device=device)
    return at, torch.tensor(lasts, device=device), torch.tensor(keys, device=device), kind


def _signed(key: int) -> int:
    return key - (1 << 64) if key >> 63 else key


@triton.jit
def _norms(
    base, sources, partial, limits, lasts, keys, size,
    K: tl.constexpr, SUBTRACT: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = position < size
    start = tl.zeros((BLOCK,), tl.float32)
    if SUBTRACT:
        start = tl.load(base + position, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(K):
        delta = _kept(
            sources[k], start, tl.load(limits + k), tl.load(lasts + k), tl.load(keys + k), position, inside, SUBTRACT, KEEP, BLOCK
        )
        tl.store(partial + tl.program_id(0).to(tl.int64) * K + k, tl.sum(tl.abs(delta), axis=0))


def norms(base: Tensor | None, sources: Sequence[Tensor], keep: Keep = None, *, subtract: bool = True) -> list[float]:
    """‖δₖ‖₁ of what `keep` keeps: a sum for each block, and their sum in float64."""
    flat, size, device = [source.contiguous() for source in sources], sources[0].numel(), sources[0].device
    if not size:
        return [0.0] * len(flat)
    block = block_of(size)
    partial = torch.empty(triton.cdiv(size, block), len(flat), dtype=torch.float32, device=device)
    limits, lasts, keys, kind = _limits(keep, len(flat), device)
    _norms[(len(partial),)](
        flat[0] if base is None else base.contiguous(), tuple(flat), partial, limits, lasts, keys, size,
        K=len(flat), SUBTRACT=subtract and base is not None, KEEP=kind, BLOCK=block, **EXACT,
    )  # fmt: skip
    return [float(total) for total in partial.double().sum(0).tolist()]
