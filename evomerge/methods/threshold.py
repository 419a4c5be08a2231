"""The magnitude that keeps a given density of a task vector, exactly: no sorting, and every later density is a look-up.

Magnitudes are compared as float32, whose bits order them: the top 16 are a bin. How many elements lie in each bin is
counted once per task vector; a density then falls into one bin, and only that one is sorted, and remembered. At equal
magnitudes the lower position is kept, so that exactly k elements are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge import kernels
from evomerge.masks import Trim

BINS = 1 << 15  # float32 without its sign, top 15 bits of what remains
PIECE = 1 << 18

Pair = tuple[Tensor | None, Tensor]  # a base, and what it is subtracted from
Read = Callable[[slice], Tensor]  # a piece of a flat task vector, float32


@dataclass(frozen=True)
class Table:
    """How many magnitudes of a task vector, or of several together, lie in each bin; the bins from large to small."""

    bins: NDArray[np.int64]
    upto: NDArray[np.int64]  # how many elements this bin and the ones before it hold

    @classmethod
    def of(cls, counts: NDArray[np.int64]) -> Table:
        bins = np.flatnonzero(counts)[::-1]
        return cls(bins, np.cumsum(counts[bins]))

    @classmethod
    def merge(cls, tables: Sequence[Table]) -> Table:
        return tables[0] if len(tables) == 1 else cls.of(sum((table.counts for table in tables), np.zeros(BINS, np.int64)))

    @property
    def counts(self) -> NDArray[np.int64]:
        counts = np.zeros(BINS, np.int64)
        counts[self.bins] = np.diff(self.upto, prepend=0)
        return counts

    @property
    def size(self) -> int:
        return int(self.upto[-1]) if len(self.upto) else 0

    def span(self, bin: int) -> slice:
        """Where a bin's elements stand among all, from large to small."""
        place = int(np.searchsorted(-self.bins, -bin))
        if place == len(self.bins) or self.bins[place] != bin:
            return slice(0, 0)
        return slice(int(self.upto[place - 1]) if place else 0, int(self.upto[place]))

    def find(self, kept: int) -> tuple[int, int]:
        """The bin that holds the `kept`-th largest magnitude, and its rank inside, from 1."""
        place = int(np.searchsorted(self.upto, kept))
        before = int(self.upto[place - 1]) if place else 0
        return int(self.bins[place]), kept - before


@dataclass(frozen=True)
class Members:
    """The elements of one bin, from large to small, equal ones by position."""

    falling: NDArray[np.float32]  # minus the magnitude, so that it is in order
    positions: NDArray[np.integer[Any]]


class Magnitudes:
    """The magnitudes of one task vector: their table, and the bins looked into so far."""

    def __init__(
        self, read: Read, size: int, *, resident: bool = False, pair: Pair | None = None, memory: dict[Any, Any] | None = None
    ) -> None:
        self.read = read
        self.size = size
        self.resident = resident  # lay all elements out by bin
        self.pair = pair  # what is read, for a kernel that reads it itself
        self.passing = memory is None and not resident  # nobody asks for a second density
        self._memory = {} if memory is None else memory  # the table and bins found so far, by whoever read the same vector
        self.trim = lru_cache(maxsize=64)(self._trim)

    def _trim(self, density: float) -> Trim:
        """What keeps exactly `density` of this task vector."""
        return Trim(0.0, self.size) if density >= 1 else self.largest(count(density, self.size))

    def band(self, density: float, gamma: float) -> tuple[Trim, Trim]:
        """What keeps `density` of this task vector below the largest `gamma` of it: an outer trim without an inner one.

        Where both do not fit, fewer of the largest are left out. Breadcrumbs, Davari and Belilovsky 2023 (arXiv:2312.06795).
        """
        if density >= 1:
            return Trim(0.0, self.size), Trim(np.inf, -1)
        kept, outliers = int(density * self.size), int(gamma * self.size)
        inner = min(outliers, self.size - kept)
        return self.largest(inner + kept), self.largest(inner)

    def largest(self, kept: int) -> Trim:
        """What keeps exactly so many elements."""
        return self._selected(kept) or _largest([self], kept, self.table)[0]

    def _selected(self, kept: int) -> Trim | None:
        """The same in one pass, without a table."""
        if not self.passing or "table" in self._memory or self.pair is None:
            return None
        fused = kernels.twin("largest", self.pair[0], self.pair[1:])
        if fused is None or (found := fused(*self.pair, kept)) is None:
            return None
        magnitude, equal, room = found
        return _trim(magnitude, equal[:room], equal[room:])

    @property
    def table(self) -> Table:
        if "table" not in self._memory:
            self._memory["table"] = self._counted()
        return cast(Table, self._memory["table"])

    def _counted(self) -> Table:
        if self.pair and (fused := kernels.twin("counts", self.pair[0], self.pair[1:])):
            return Table.of(fused(*self.pair))
        counts = np.zeros(BINS, np.int64)
        for _, bins in self._bins():
            counts += np.bincount(bins, minlength=BINS)
        return Table.of(counts)

    def members(self, bin: int) -> Members:
        if bin not in self._memory:
            if self.resident:
                span = self.table.span(bin)
                falling, positions = self._laid_out.falling[span], self._laid_out.positions[span]
            else:
                falling, positions = self._scan(bin)
            order = np.argsort(falling, kind="stable")
            self._memory[bin] = Members(falling[order], positions[order])
        return cast(Members, self._memory[bin])

    @cached_property
    def _laid_out(self) -> Members:
        """All elements by bin, kept with a resident task vector so that a bin is a slice."""
        falling = [-self.read(piece).abs().cpu().numpy() for piece in self._pieces()]
        bins = np.concatenate([BINS - 1 - bins for _, bins in self._bins()])
        order = np.argsort(bins, kind="stable")  # a radix sort: bins have 16 bits
        return Members(np.concatenate(falling)[order], order.astype(np.int32))

    def _scan(self, bin: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """A bin's elements by position."""
        if self.pair and (fused := kernels.twin("members", self.pair[0], self.pair[1:])):
            span = self.table.span(bin)
            sizes, where = fused(*self.pair, bin, span.stop - span.start)
            return -sizes, where
        falling, positions = [], []
        for piece, bins in self._bins():
            here = np.flatnonzero(bins == bin)
            falling.append(-self.read(piece)[torch.from_numpy(here)].abs().cpu().numpy())
            positions.append(here + piece.start)
        return np.concatenate(falling), np.concatenate(positions)

    def _bins(self) -> Iterator[tuple[slice, NDArray[np.int16]]]:
        for piece in self._pieces():
            yield piece, (self.read(piece).abs().view(torch.int32) >> 16).to(torch.int16).cpu().numpy()

    def _pieces(self) -> Iterator[slice]:
        for start in range(0, max(self.size, 1), PIECE):
            yield slice(start, min(start + PIECE, self.size))


def count(density: float, size: int) -> int:
    """How many of `size` elements a density keeps: at least one, unless it is 0."""
    return 0 if density <= 0 or not size else min(size, max(1, int(density * size)))


def thresholds(vectors: Sequence[Magnitudes], density: float, table: Table | None = None) -> tuple[Trim, ...]:
    """For each of several task vectors the trim that together keeps exactly `density` of all their elements."""
    if density >= 1:
        return tuple(Trim(0.0, vector.size) for vector in vectors)
    table = table or Table.merge([vector.table for vector in vectors])
    return _largest(vectors, count(density, table.size), table)


def _largest(vectors: Sequence[Magnitudes], kept: int, table: Table) -> tuple[Trim, ...]:
    if not kept:
        return tuple(Trim(np.inf, -1) for _ in vectors)
    bin, rank = table.find(kept)
    return _split([vector.members(bin) for vector in vectors], rank)


def _split(members: Sequence[Members], rank: int) -> tuple[Trim, ...]:
    """The trims that keep the `rank` largest of one bin's elements."""
    falling = members[0].falling if len(members) == 1 else np.sort(np.concatenate([part.falling for part in members]))
    threshold = falling[rank - 1]
    room = rank - int(np.searchsorted(falling, threshold))  # how many of those equal to it are kept
    trims = []
    for part in members:
        first, last = np.searchsorted(part.falling, threshold), np.searchsorted(part.falling, threshold, side="right")
        equal = part.positions[first:last]
        trims.append(_trim(-float(threshold), equal[:room], equal[room:]))
        room -= min(room, len(equal))
    return tuple(trims)


def _trim(magnitude: float, stay: NDArray[np.integer[Any]], go: NDArray[np.integer[Any]]) -> Trim:
    if not len(stay):
        return Trim(magnitude, -1)
    excess = go if magnitude else go[:0]  # a zero may stay: it adds nothing
    return Trim(magnitude, int(stay[-1]), excess.astype(np.int64))
