"""The one operation behind linear, task arithmetic, TIES and DARE: sparsify × elect × weigh × normalise × add.

    base + scale · Σ weightₖ · δₖ        of each δₖ = sourceₖ - base what `keep` keeps, and of that, where an election
                                         is held, what has the elected sign

A tensor is worked through in chunks that stay in the cache; no result depends on where a chunk ends. Masks are floats, 0
or 1, and multiply: so a NaN is seen in the result whatever is dropped, and torch is faster than with booleans.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from evomerge import kernels
from evomerge.masks import Ballot, Bands, Drops, Keep, Marks, Ranked, Trim

CHUNK = 3 << 15  # elements of all sources together


@dataclass(frozen=True)
class Group:
    """The numbers of one group of rows."""

    weight: tuple[float, ...]  # [K]
    scale: float


def combine(
    base: Tensor | None,
    sources: Sequence[Tensor],
    weight: Sequence[Sequence[float]],  # [K][G]: one for each of G equal groups of rows
    *,
    keep: Keep = None,
    ballot: Ballot | None = None,
    scale: Sequence[float] = (1.0,),  # [G]
    subtract: bool = True,  # False: the sources are deltas already
    dtype: torch.dtype | None = None,
) -> Tensor:
    """base + scale · Σ weightₖ · δₖ, in float32 (float64 where an input is), rounded once to `dtype`."""
    first = sources[0] if base is None else base
    if fused := kernels.twin("combine", base, sources, keep, dtype):
        return cast(Tensor, fused(base, sources, weight, keep=keep, ballot=ballot, scale=scale, subtract=subtract, dtype=dtype))
    deltas = Deltas(base, sources, keep, subtract)
    merged = kernels.result(first.shape, dtype or first.dtype, first.device)
    flat = merged.view(-1)
    for stretch, group in groups(flat.numel(), weight, scale):
        blend = Blend(deltas, group, ballot)
        for piece in deltas.chunks(stretch):
            flat[piece] = blend(piece)
    return merged


def norms(base: Tensor | None, sources: Sequence[Tensor], keep: Keep = None, *, subtract: bool = True) -> list[float]:
    """‖δₖ‖₁ of what `keep` keeps, before its rescaling."""
    if fused := kernels.twin("norms", base, sources, keep):
        return cast(list[float], fused(base, sources, keep, subtract=subtract))
    deltas = Deltas(base, sources, keep, subtract)
    parts = [kernels.row_sums(deltas.kept(piece).abs()).tolist() for piece in deltas.chunks()]
    return [math.fsum(part[k] for part in parts) for k in range(len(sources))]


def balance(base: Tensor | None, sources: Sequence[Tensor], keep: Keep = None, *, subtract: bool = True) -> float:
    """Σ of the signs that an election without weights elects: its own sign is the majority's."""
    if fused := kernels.twin("balance", base, sources, keep):
        return cast(float, fused(base, sources, keep, subtract=subtract))
    deltas = Deltas(base, sources, keep, subtract)
    votes = (deltas.kept(piece) * deltas.column(deltas.rescale) for piece in deltas.chunks())
    return math.fsum(float(_sum(vote).sign_().sum()) for vote in votes)


def groups(size: int, weight: Sequence[Sequence[float]], scale: Sequence[float]) -> Iterator[tuple[slice, Group]]:
    """Each stretch of a flat tensor with one weight a source: equal groups of rows lie one after the other."""
    count = math.lcm(len(scale), *map(len, weight))
    for g in range(count):
        numbers = Group(tuple(w[g * len(w) // count] for w in weight), scale[g * len(scale) // count])
        yield slice(g * size // count, (g + 1) * size // count), numbers


class Deltas:
    """The sparsified deltas, a chunk at a time, in the dtype of the computation."""

    def __init__(self, base: Tensor | None, sources: Sequence[Tensor], keep: Keep, subtract: bool) -> None:
        self.base = None if base is None else base.reshape(-1)
        self.count, self.size, self.device = len(sources), sources[0].numel(), sources[0].device
        self.sources: Tensor | list[Tensor]
        if isinstance(sources, Tensor):
            self.sources, dtypes = sources.view(self.count, self.size), {sources.dtype}
        else:
            self.sources, dtypes = [source.reshape(-1) for source in sources], {source.dtype for source in sources}
        dtypes |= set() if base is None else {base.dtype}
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.subtract = subtract and base is not None
        self.keep = keep
        self.rescale = keep.rescale if isinstance(keep, (Drops, Bands, Ranked, Marks)) else (1.0,) * self.count
        self.limit = self._limit(keep)

    def chunks(self, stretch: slice | None = None) -> Iterator[slice]:
        first, last = (stretch.start, stretch.stop) if stretch else (0, self.size)
        step = CHUNK // self.count
        for start in range(first, last, step):
            yield slice(start, min(start + step, last))

    def column(self, numbers: Sequence[float], dtype: type[np.floating[Any]] | None = None) -> Tensor:
        kind = dtype or (np.float64 if self.dtype == torch.float64 else np.float32)
        return torch.from_numpy(np.array(numbers, kind).reshape(-1, 1)).to(self.device)  # [K, 1]

    def kept(self, piece: slice) -> Tensor:
        """What is kept of each delta, zero elsewhere, [K, n]; without a `keep` it may be a view of the sources."""
        delta = self.whole(piece)
        if self.keep is None:
            return delta
        if isinstance(self.keep, Drops):
            uniform = self.keep.uniform(piece.start, delta.shape[1]).to(self.device)
            mask = torch.ge(uniform, self.limit, out=torch.empty_like(uniform))
        elif isinstance(self.keep, Ranked):
            mask = self.keep.factor(piece.start, delta.shape[1])
        elif isinstance(self.keep, Marks):
            mask = self.keep.factor[:, piece].to(self.dtype, copy=True)
        elif isinstance(self.keep, Bands):
            mask = self._large(delta, self.keep.outer, piece)
            mask -= self._large(delta, self.keep.inner, piece)
        else:
            mask = self._large(delta, self.keep, piece)
        return mask.to(self.dtype).mul_(delta)

    def whole(self, piece: slice) -> Tensor:
        """The deltas before anything is dropped."""
        if isinstance(self.sources, Tensor) and self.sources.dtype == self.dtype and not self.subtract:
            return self.sources[:, piece]
        delta = torch.empty(self.count, piece.stop - piece.start, dtype=self.dtype, device=self.device)
        for row, source in zip(delta, self.sources, strict=True):
            row.copy_(source[piece])
        return delta.sub_(self.base[piece]) if self.subtract and self.base is not None else delta

    def _limit(self, keep: Keep) -> Tensor:
        """What a uniform number must not be below: float32, as it is."""
        return self.column(keep.rates, np.float32) if isinstance(keep, Drops) else torch.empty(0)

    def _large(self, delta: Tensor, trims: Sequence[Trim], piece: slice) -> Tensor:
        floor = self.column([trim.floor for trim in trims], np.float32)  # as magnitudes are compared
        mask = delta.abs().float().gt_(floor)  # [K, n]
        for k, trim in enumerate(trims):
            if len(trim.excess):
                first, last = trim.excess.searchsorted((piece.start, piece.stop))
                mask[k].index_fill_(0, torch.from_numpy(trim.excess[first:last] - piece.start).to(self.device), 0)
        return mask


class Blend:
    """A chunk's deltas become a chunk of the merged tensor, with the numbers of one group of rows."""

    def __init__(self, deltas: Deltas, group: Group, ballot: Ballot | None) -> None:
        self.deltas, self.ballot, self.scale = deltas, ballot, group.scale
        pairs = list(zip(group.weight, deltas.rescale, strict=True))
        self.weight = deltas.column(group.weight)
        if ballot is None:
            self.voice = deltas.column([w * r * group.scale for w, r in pairs])
        else:
            self.voice = deltas.column([w * r if ballot.weighted else r for w, r in pairs])

    def __call__(self, piece: slice) -> Tensor:
        kept = self.deltas.kept(piece)
        votes = torch.mul(kept, self.voice, out=None if self.deltas.keep is None else kept)  # [K, n]
        total = _sum(votes) if self.ballot is None else self._elected(votes, self.ballot)
        return total if self.deltas.base is None else total.add_(self.deltas.base[piece])

    def _elected(self, votes: Tensor, ballot: Ballot) -> Tensor:
        """Σ of what has the elected sign: TIES, steps 2 and 3 (Yadav et al. 2023). The votes are used up."""
        sign = _sign(_sum(votes), ballot.tie)
        agreeing = votes.mul_(sign).relu_()  # |vote| where it agrees, 0 where not
        total = _sum(agreeing if ballot.weighted else agreeing * self.weight).mul_(sign)
        if ballot.normalize:
            agrees = agreeing.gt_(0)
            divisor = _sum(agrees.mul_(self.weight) if ballot.weighted else agrees)
            total.div_(divisor.add_(torch.eq(divisor, 0, out=sign)))  # 0 -> 1: nobody agrees, nothing is added
        return total if self.scale == 1 else total.mul_(self.scale)


def _sum(terms: Tensor) -> Tensor:
    """Over the sources, one after the other: a kernel adds in the same order."""
    first, *rest = terms.unbind(0)
    total = first + rest[0] if rest else first.clone()
    for term in rest[1:]:
        total += term
    return total


def _sign(total: Tensor, tie: int) -> Tensor:
    """+1 or -1, and `tie` for 0."""
    positive = total.ge_(0) if tie > 0 else total.gt_(0)
    return positive.mul_(2).sub_(1)
