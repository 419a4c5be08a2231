"""One pass over base and sources: subtract, sparsify, elect, weigh, normalise, add, round. See `methods/combine.py`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
# (what Triton compiles has no Python types)

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from evomerge import kernels
from evomerge.masks import Ballot, Bands, Drops, Keep, Marks, Ranked

# The largest block: Triton's interpreter pays for every block, a GPU wants many
BLOCK = 1 << 17 if os.environ.get("TRITON_INTERPRET") == "1" else 1024
EXACT = {"enable_fp_fusion": False}  # a multiplication and an addition round twice, as they do in torch
ALL, TRIM, DROP, BAND, RANK = range(5)  # what `keep` asks for


@triton.jit
def _kept(
    source, ranks, chances, base, limits, lasts, keys, block, position, inside, k: tl.constexpr,
    K: tl.constexpr, SUBTRACT: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is kept of one delta, zero elsewhere; a NaN stays one whatever is dropped."""
    delta = tl.load(source + position, mask=inside, other=0.0).to(tl.float32)  # [BLOCK]
    if SUBTRACT:
        delta -= base
    if KEEP == 1:
        delta = tl.where(_large(delta, limits + k, lasts + k, position), delta, delta * 0.0)
    if KEEP == 2:
        delta = tl.where(_uniform(tl.load(keys + k), block, BLOCK) >= tl.load(limits + k), delta, delta * 0.0)
    if KEEP == 3:
        outlier = _large(delta, limits + K + k, lasts + K + k, position)
        delta = tl.where(_large(delta, limits + k, lasts + k, position) & (outlier == 0), delta, delta * 0.0)
    if KEEP == 4:
        chance = chances + 2 * tl.load(ranks + position, mask=inside, other=0).to(tl.int64)  # [BLOCK] of pairs
        stays = _uniform(tl.load(keys + k), block, BLOCK) >= tl.load(chance)
        delta = tl.where(stays, delta * tl.load(chance + 1), delta * 0.0)
    return delta


@triton.jit
def _large(delta, limit, last, position):
    """Where a trim keeps: above its magnitude, and of what equals it up to a position."""
    size, magnitude = tl.abs(delta), tl.load(limit)
    return (size > magnitude) | ((size == magnitude) & (position <= tl.load(last)))


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
    if tl.bfloat16 == KIND:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(KIND)


@triton.jit
def _pointer(cell, example, ALIGNED: tl.constexpr):
    """The address in a cell as a pointer like the example."""
    pointer = tl.load(cell).to(example.dtype)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _source(sources, row, k: tl.constexpr, MANY: tl.constexpr, ALIGNED: tl.constexpr):
    if MANY:
        return _pointer(row + 5 + k, sources[k], ALIGNED)
    else:
        return sources[k]


@triton.jit
def _ranked(ranks, chances, row, k: tl.constexpr, K: tl.constexpr, KEEP: tl.constexpr, MANY: tl.constexpr, ALIGNED: tl.constexpr):
    """The ranks of one source and their chances, where `keep` asks for them."""
    if MANY and KEEP == 4:
        return _pointer(row + 5 + K + k, ranks[k], ALIGNED), _pointer(row + 5 + 2 * K + k, chances[k], False)
    else:
        return ranks[k], chances[k]


@triton.jit
def _combine(
    base, sources, ranks, chances, merged, weights, voices, scales, limits, lasts, keys, size, rows, owners, row,
    K: tl.constexpr, GROUPS: tl.constexpr, ADD: tl.constexpr, SUBTRACT: tl.constexpr, KEEP: tl.constexpr,
    ELECT: tl.constexpr, WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr, TIE: tl.constexpr,
    MANY: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    if MANY:  # what is said of one tensor is then said in a row of a table
        owner = tl.load(owners + block)
        row += owner * (3 * K + 5 if KEEP == 4 else K + 5)
        size, rows, block = tl.load(row), tl.load(row + 1), block - tl.load(row + 2).to(tl.int32)
        if ALIGNED:
            size = tl.multiple_of(size, 16)
        base, merged = _pointer(row + 3, base, ALIGNED), _pointer(row + 4, merged, ALIGNED)
        weights, voices, scales = weights + owner * GROUPS * K, voices + owner * GROUPS * K, scales + owner * GROUPS
        trims = owner * (2 * K if KEEP == 3 else K)
        limits, lasts, keys = limits + trims, lasts + trims, keys + owner * K
    position = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = position < size
    group = 0 if GROUPS == 1 else tl.minimum(position // rows, GROUPS - 1)
    start = tl.zeros((BLOCK,), tl.float32)
    if ADD:
        start = tl.load(base + position, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        rank, chance = _ranked(ranks, chances, row, k, K, KEEP, MANY, ALIGNED)
        delta = _kept(
            _source(sources, row, k, MANY, ALIGNED), rank, chance, start, limits, lasts, keys,
            block, position, inside, k, K, SUBTRACT, KEEP, BLOCK,
        )  # fmt: skip
        total += delta * tl.load(voices + group * K + k)
    if ELECT:
        sign = tl.where((total > 0) | ((total == 0) & (TIE > 0)), 1.0, -1.0)
        total = tl.zeros((BLOCK,), tl.float32)
        divisor = tl.zeros((BLOCK,), tl.float32)
        for k in tl.static_range(K):
            rank, chance = _ranked(ranks, chances, row, k, K, KEEP, MANY, ALIGNED)
            delta = _kept(
                _source(sources, row, k, MANY, ALIGNED), rank, chance, start, limits, lasts, keys,
                block, position, inside, k, K, SUBTRACT, KEEP, BLOCK,
            )  # fmt: skip
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
    return not isinstance(keep, Marks) and dtype in (None, torch.bfloat16, torch.float16, torch.float32, torch.float64)


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
    """base + scale · Σ weightₖ · δₖ: the launcher. Inside `kernels.together` the result is not there before its end."""
    flat, first = tuple(source.contiguous() for source in sources), sources[0] if base is None else base
    wanted = dtype or first.dtype
    merged = kernels.result(first.shape, torch.float32 if wanted == torch.float64 else wanted, first.device)
    job = Job(None if base is None else base.contiguous(), flat, merged, weight, scale, keep, ballot, subtract)
    waiting = kernels.waiting()
    if waiting is None or merged.dtype != wanted:
        launch([job])
    else:
        waiting.append(job)
    return merged.to(wanted)


@dataclass(frozen=True)
class Job:
    """One tensor to be merged."""

    base: Tensor | None
    sources: tuple[Tensor, ...]
    merged: Tensor
    weight: Sequence[Sequence[float]]  # [K][G]
    scale: Sequence[float]  # [G]
    keep: Keep
    ballot: Ballot | None
    subtract: bool

    @classmethod
    def to_be_read(cls, base: Tensor | None, sources: Sequence[Tensor], keep: Keep, subtract: bool) -> Job:
        """A job of which only the deltas are asked for."""
        flat = tuple(source.contiguous() for source in sources)
        return cls(None if base is None else base.contiguous(), flat, flat[0], [(1.0,)] * len(flat), (1.0,), keep, None, subtract)

    @property
    def groups(self) -> int:
        return math.lcm(len(self.scale), *map(len, self.weight))

    @property
    def rows(self) -> int:
        """Elements of a group of rows."""
        return max(self.merged.numel() // self.groups, 1)

    @property
    def options(self) -> dict[str, int | bool]:
        """What is compiled into the kernel."""
        ballot, based = self.ballot or Ballot(weighted=True, normalize=False), self.base is not None
        return {
            "K": len(self.sources), "GROUPS": self.groups, "ADD": based, "SUBTRACT": self.subtract and based,
            "KEEP": kind_of(self.keep), "ELECT": self.ballot is not None, "WEIGHTED": ballot.weighted,
            "NORMALIZE": ballot.normalize, "TIE": ballot.tie,
        }  # fmt: skip

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """In the order of their addresses in a row of the table."""
        masks = (*self.ranks, *self.chances) if isinstance(self.keep, Ranked) else ()
        return (self.sources[0] if self.base is None else self.base, self.merged, *self.sources, *masks)

    @cached_property
    def ranks(self) -> tuple[Tensor, ...]:
        """Of each source the rank of every element; where nobody asks for one, something that can be pointed at."""
        return tuple(ranks.contiguous() for ranks in self.keep.ranks) if isinstance(self.keep, Ranked) else self.sources

    @property
    def chances(self) -> tuple[Tensor, ...]:
        return self.keep.chances.unbind(0) if isinstance(self.keep, Ranked) else self.sources

    @property
    def aligned(self) -> bool:
        """Whether several elements can be loaded at once; of addresses in a table the compiler must be told."""
        return self.merged.numel() % 16 == 0 and all(
            tensor.data_ptr() % 16 == 0 for tensor in self.tensors[: 2 + 2 * len(self.sources)]
        )

    @property
    def kind(self) -> tuple[object, ...]:
        """Jobs of one kind can go together."""
        return (*self.options.items(), *(tensor.dtype for tensor in self.tensors), self.merged.device)


def launch(jobs: Sequence[Job]) -> None:
    """Each kind of job at once: a model has hundreds of norms and biases, whose launches would cost more than their bytes."""
    kinds: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        if job.merged.numel():
            kinds.setdefault(job.kind, []).append(job)
    for alike in kinds.values():
        _launch(alike)


def _launch(jobs: Sequence[Job]) -> None:
    first, device, many = jobs[0], jobs[0].merged.device, len(jobs) > 1
    block = block_of(max(job.merged.numel() for job in jobs))
    blocks = [triton.cdiv(job.merged.numel(), block) for job in jobs]
    numbers = [torch.stack(part).to(device) for part in zip(*(_numbers(job) for job in jobs), strict=True)]
    base = first.tensors[0]
    _combine[(sum(blocks),)](
        base, first.sources, first.ranks, first.chances, first.merged, *numbers, first.merged.numel(), first.rows,
        *_tables(jobs, blocks, device), **first.options, MANY=many,
        ALIGNED=all(job.aligned for job in jobs), BLOCK=block, **EXACT,
    )  # fmt: skip


def _tables(jobs: Sequence[Job], blocks: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Which job each block belongs to; and of each job its size, rows of a group, first block and addresses."""
    if len(jobs) == 1:
        return (torch.zeros(1, dtype=torch.int64, device=device),) * 2
    firsts = [0, *accumulate(blocks)]
    rows = [
        [job.merged.numel(), job.rows, begin, *(tensor.data_ptr() for tensor in job.tensors)]
        for job, begin in zip(jobs, firsts, strict=False)
    ]
    owners = torch.arange(len(jobs), device=device).repeat_interleave(torch.tensor(blocks, device=device))
    return owners, torch.tensor(rows, device=device)


def block_of(size: int) -> int:
    """Elements of a block: a power of two."""
    return int(min(BLOCK, max(4, triton.next_power_of_2(size))))  # four words of random numbers at least


def _numbers(job: Job) -> tuple[Tensor, ...]:
    """weights [G, K], what each source's delta is multiplied by before it is added or votes [G, K], scales [G]; and limits."""
    count, keep = job.groups, job.keep
    weights = torch.tensor([[w[g * len(w) // count] for w in job.weight] for g in range(count)], dtype=torch.float64)
    scales = torch.tensor([job.scale[g * len(job.scale) // count] for g in range(count)], dtype=torch.float64)
    rescale = torch.tensor(
        keep.rescale if isinstance(keep, (Drops, Bands, Ranked)) else [1.0] * len(job.weight), dtype=torch.float64
    )
    if job.ballot is None:
        voices = weights * rescale * scales.unsqueeze(1)
    else:
        voices = weights * rescale if job.ballot.weighted else rescale.expand_as(weights)
    return weights.float(), voices.float(), scales.float(), *_limits(keep, len(job.sources))


def kind_of(keep: Keep) -> int:
    """What `keep` asks for, as the kernel is told."""
    kinds = {type(None): ALL, Drops: DROP, Bands: BAND, Ranked: RANK}
    return kinds.get(type(keep), TRIM)


def _limits(keep: Keep, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each source the magnitude or rate, the last position kept at that magnitude, the key; of bands inner trims follow."""
    limits, lasts, keys = [0.0] * count, [0] * count, [0] * count
    if isinstance(keep, Drops):
        limits = list(keep.rates)
    elif isinstance(keep, (Bands, Sequence)):
        trims = (*keep.outer, *keep.inner) if isinstance(keep, Bands) else keep
        limits, lasts = [trim.magnitude for trim in trims], [trim.last for trim in trims]
    if isinstance(keep, (Drops, Ranked)):
        keys = [_signed(key) for key in keep.keys]
    return torch.tensor(limits, dtype=torch.float32), torch.tensor(lasts), torch.tensor(keys)


def _signed(key: int) -> int:
    return key - (1 << 64) if key >> 63 else key


@triton.jit
def _sums(
    base, sources, ranks, chances, partial, limits, lasts, keys, voices, size,
    K: tl.constexpr, SUBTRACT: tl.constexpr, KEEP: tl.constexpr, SIGNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each block Σ|δₖ| of every source, or the sum of the signs of what they add up to."""
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = position < size
    start = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if SUBTRACT:
        start = tl.load(base + position, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(K):
        delta = _kept(
            sources[k], ranks[k], chances[k], start, limits, lasts, keys,
            tl.program_id(0), position, inside, k, K, SUBTRACT, KEEP, BLOCK,
        )  # fmt: skip
        if SIGNS:
            total += delta * tl.load(voices + k)
        else:
            tl.store(partial + tl.program_id(0).to(tl.int64) * K + k, tl.sum(tl.abs(delta), axis=0))
    if SIGNS:
        tl.store(
            partial + tl.program_id(0).to(tl.int64), tl.sum(tl.where(total > 0, 1.0, tl.where(total < 0, -1.0, 0.0)), axis=0)
        )


def norms(base: Tensor | None, sources: Sequence[Tensor], keep: Keep = None, *, subtract: bool = True) -> list[float]:
    """‖δₖ‖₁ of what `keep` keeps: a sum for each block, and their sum in float64."""
    return _summed(base, sources, keep, subtract, signs=False)


def balance(base: Tensor | None, sources: Sequence[Tensor], keep: Keep = None, *, subtract: bool = True) -> float:
    """Σ of the signs that an election without weights elects."""
    return _summed(base, sources, keep, subtract, signs=True)[0]


def _summed(base: Tensor | None, sources: Sequence[Tensor], keep: Keep, subtract: bool, *, signs: bool) -> list[float]:
    job = Job.to_be_read(base, sources, keep, subtract)
    size, device, columns = job.merged.numel(), job.merged.device, 1 if signs else len(sources)
    if not size:
        return [0.0] * columns
    block = block_of(size)
    partial = torch.empty(triton.cdiv(size, block), columns, dtype=torch.float32, device=device)
    numbers = (part.to(device) for part in (*_limits(keep, len(sources)), _numbers(job)[1]))
    _sums[(len(partial),)](
        job.tensors[0], job.sources, job.ranks, job.chances, partial, *numbers, size,
        K=len(sources), SUBTRACT=job.options["SUBTRACT"], KEEP=kind_of(keep), SIGNS=signs, BLOCK=block, **EXACT,
    )  # fmt: skip
    return [float(total) for total in partial.double().sum(0).tolist()]
