"""Which elements of a delta stay: the large ones, those that a random mask leaves, those that agree in sign.

A random number is a pure function of (seed, source name, tensor name, position), so neither chunk size nor order,
device or resumption changes a mask. The generator is Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3"), all four words of each counter used:

    word(position)    = Philox(key, counter = (position // 4, 0))[position % 4]       a 64-bit counter, low word first
    uniform(position) = float32(w if w < 2³¹ else 2³² - 1 - w) · float32(4.6566127342e-10)

The second line is the map of Triton's `tl.rand`: a kernel makes the same masks bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 13  # counters at a time, so that the generator's state stays in the cache
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
TO_UNIT = np.float32(4.6566127342e-10)  # just under 2⁻³¹: the largest word stays below 1


@dataclass(frozen=True)
class Trim:
    """Keep of one delta what is larger than `magnitude`, and of what equals it the positions up to `last`."""

    magnitude: float
    last: int
    excess: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # positions beyond `last` that equal it

    @property
    def floor(self) -> float:
        """What is above it is kept, but for the excess: the float32 just below `magnitude` where any that equals it stays."""
        return self.magnitude if self.last < 0 else float(np.nextafter(np.float32(self.magnitude), np.float32(-1)))

    def mask(self, magnitude: Tensor, start: int) -> Tensor:
        """Where it keeps magnitudes, float32 [n], the first of which stands at position `start`."""
        kept = magnitude > self.floor
        first, last = self.excess.searchsorted((start, start + len(magnitude)))
        return kept.index_fill_(0, torch.from_numpy(self.excess[first:last] - start).to(kept.device), False)


@dataclass(frozen=True)
class Drops:
    """Keep of each delta the positions whose uniform number is not below its rate, and rescale what stays."""

    rates: tuple[float, ...]  # [K]
    keys: tuple[int, ...]
    rescale: tuple[float, ...]
    resident: Tensor | None = None  # the uniform numbers [K, N], where a caller keeps them

    def uniform(self, start: int, count: int) -> Tensor:
        """The uniform numbers of a piece, [K, count]."""
        if self.resident is not None:
            return self.resident[:, start : start + count]
        return torch.stack([draw(key, start, count) for key in self.keys])


@dataclass(frozen=True)
class Bands:
    """Keep of each delta what its `outer` trim keeps and its `inner` one does not: neither small nor an outlier."""

    outer: tuple[Trim, ...]  # [K]
    inner: tuple[Trim, ...]
    rescale: tuple[float, ...]

    @classmethod
    def below(cls, trims: tuple[Trim, ...]) -> Bands:
        """What the trims keep, outliers and all."""
        return cls(trims, (Trim(math.inf, -1),) * len(trims), (1.0,) * len(trims))


@dataclass(frozen=True)
class Ranked:
    """Keep of each delta the positions whose uniform number is not below their rank's limit, times their rank's growth."""

    ranks: tuple[Tensor, ...]  # [K] of [N], int16 or int32: where each magnitude stands in its row, from the smallest, 0
    chances: Tensor  # [K, W, 2] in the computation's dtype: of each rank its limit, a float32, and its growth
    keys: tuple[int, ...]
    rescale: tuple[float, ...]
    resident: Tensor | None = None  # the uniform numbers [K, N], where a caller keeps them

    def factor(self, start: int, count: int) -> Tensor:
        """What each element of a piece is multiplied by, [K, count]."""
        return torch.stack([self._factor(k, start, count) for k in range(len(self.keys))])

    def _factor(self, k: int, start: int, count: int) -> Tensor:
        limit, growth = self.chances[k, self.ranks[k][start : start + count].long()].unbind(-1)
        drawn = draw(self.keys[k], start, count) if self.resident is None else self.resident[k, start : start + count]
        return torch.where(drawn.to(limit.device) >= limit, growth, 0.0)


@dataclass(frozen=True)
class Marks:
    """Multiply each element of each delta by a factor of its own, 0 where it is dropped, and rescale what stays."""

    factor: Tensor  # [K, N]: bool, or of the computation's dtype
    rescale: tuple[float, ...]


Keep = Sequence[Trim] | Drops | Bands | Ranked | Marks | None


@dataclass(frozen=True)
class Ballot:
    """Keep what agrees in sign with an election among the sources: how it is held, and what the agreeing are divided by."""

    weighted: bool  # votes count with their weight, and so do the agreeing in the divisor
    normalize: bool  # divide by how many agree
    tie: int = 1  # the sign elected where the votes cancel


def uniform(seed: int, source: str, tensor: str, start: int, count: int) -> Tensor:
    """The uniform numbers in [0, 1) of positions start … start + count - 1, float32."""
    return draw(key(seed, source, tensor), start, count)


def key(seed: int, source: str, tensor: str) -> int:
    """64 bits that name this source's copy of this tensor under this seed."""
    name = json.dumps([seed, source, tensor]).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little")


def draw(key: int, start: int, count: int) -> Tensor:
    """The uniform numbers of a key."""
    word = words(key, start, count).view(np.int32)
    word ^= word >> 31  # a negative word w becomes -w - 1
    return torch.from_numpy(word.astype(np.float32) * TO_UNIT)


def words(key: int, start: int, count: int) -> NDArray[np.uint32]:
    """The 32-bit words of positions start … start + count - 1."""
    first, last = start // 4, -(-(start + count) // 4)
    block = np.empty((last - first, 4), np.uint32)
    for left in range(first, last, BLOCK):
        counter = np.arange(left, min(left + BLOCK, last), dtype=np.uint64)
        block[left - first : left - first + BLOCK] = _philox(key, counter)
    return block.reshape(-1)[start - 4 * first :][:count]


def _philox(key: int, counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    zero = np.zeros_like(counter)
    return philox([counter & LOW, counter >> SHIFT, zero, zero.copy()], [key & 0xFFFFFFFF, key >> 32])


def philox(counter: list[NDArray[np.uint64]], key: list[int]) -> NDArray[np.uint64]:
    """Philox-4x32-10: four words for every counter of four words; the counter's arrays are used up."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    left, right = np.empty_like(c0), np.empty_like(c0)
    for _ in range(ROUNDS):
        np.multiply(c0, MULTIPLIERS[0], out=left)
        np.multiply(c2, MULTIPLIERS[1], out=right)
        _mix(right, c1, k0, out=c0)
        _mix(left, c3, k1, out=c2)
        np.bitwise_and(right, LOW, out=c1)
        np.bitwise_and(left, LOW, out=c3)
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1)


def _mix(product: NDArray[np.uint64], word: NDArray[np.uint64], key: int, out: NDArray[np.uint64]) -> None:
    """high half of the product ⊕ word ⊕ key"""
    np.right_shift(product, SHIFT, out=out)
    np.bitwise_xor(out, word, out=out)
    np.bitwise_xor(out, np.uint64(key), out=out)
