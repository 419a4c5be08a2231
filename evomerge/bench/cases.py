"""What the kernels are timed on: tensors as large models have them, and each method as its one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from evomerge import masks
from evomerge.masks import Ballot, Bands, Drops, Ranked
from evomerge.methods.combine import Blend, Deltas, Group, combine
from evomerge.methods.della import chances, ranks, width_of
from evomerge.methods.inputs import Inputs, Place
from evomerge.methods.model_stock import model_stock
from evomerge.methods.slerp import STRAIGHT, slerp
from evomerge.methods.threshold import Magnitudes

SHAPES = {"7B q_proj": (4096, 4096), "7B up_proj": (11008, 4096), "70B q_proj": (8192, 8192), "70B up_proj": (28672, 8192)}
COUNTS = (2, 3, 8)
METHODS = ("linear", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "slerp", "model_stock")
DENSITY, RATE = 0.2, 0.9  # as published
WINDOW, GAMMA = 0.07, 0.01


@dataclass(frozen=True)
class Tensors:
    """A base and sources near it, as fine-tunes are."""

    base: Tensor
    sources: tuple[Tensor, ...]

    @classmethod
    def make(cls, shape: Sequence[int], count: int, dtype: torch.dtype, device: str) -> Tensors:
        generator = torch.Generator(device).manual_seed(0)

        def noise(spread: float) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype).normal_(0, spread, generator=generator)

        base = noise(0.02)
        return cls(base, tuple(base + noise(0.001) for _ in range(count)))

    @cached_property
    def magnitudes(self) -> list[Magnitudes]:
        reads = [partial(self._delta, k) for k in range(len(self.sources))]
        pairs = [(self.base, source) for source in self.sources]
        return [Magnitudes(read, self.base.numel(), pair=pair) for read, pair in zip(reads, pairs, strict=True)]

    @cached_property
    def trims(self) -> list[masks.Trim]:
        """Thresholds of each source, resident: looked for once."""
        return [vector.trim(DENSITY) for vector in self.magnitudes]

    def _delta(self, k: int, piece: slice) -> Tensor:
        return self.sources[k].view(-1)[piece].float() - self.base.view(-1)[piece].float()

    @cached_property
    def bands(self) -> Bands:
        """Thresholds of breadcrumbs, resident."""
        outer, inner = zip(*(vector.band(DENSITY, GAMMA) for vector in self.magnitudes), strict=True)
        return Bands(outer, inner, (1.0,) * len(outer))

    @cached_property
    def ranked(self) -> Ranked:
        """DELLA's ranks, resident, and the chances of each; survivors are divided by theirs."""
        width, count = width_of(self.base), len(self.sources)
        chance = torch.from_numpy(chances(DENSITY, WINDOW, width))
        table = torch.stack([(1 - chance).float(), (1 / chance).float()], dim=1).expand(count, width, 2)
        found = tuple(ranks(self.base, source, width) for source in self.sources)
        return Ranked(found, table.to(self.base.device).contiguous(), self.drops.keys, (1.0,) * count)

    @property
    def inputs(self) -> Inputs:
        """As a method takes them; nothing is known about them from before."""
        return Inputs(self.base, self.sources, Place(0, "t", tuple(map(str, range(len(self.sources))))))

    @property
    def drops(self) -> Drops:
        count = len(self.sources)
        return Drops((RATE,) * count, tuple(masks.key(0, str(k), "t") for k in range(count)), (1 / (1 - RATE),) * count)

    def head(self, size: int, dtype: torch.dtype) -> Tensors:
        """The first elements, for a comparison; what a mask says of them is what it says of them in the whole."""
        first, *rest = (tensor.view(-1)[:size].to(dtype) for tensor in (self.base, *self.sources))
        return Tensors(first, tuple(rest))


def options(method: str, given: Tensors) -> dict[str, Any]:
    """The arguments of `combine`."""
    weight = [(1 / len(given.sources),)] * len(given.sources)
    elected, normalized = method.endswith("ties") or method == "della", method in ("ties", "della")
    keeps = {"ties": "trims", "breadcrumbs": "bands", "della": "ranked", "dare_linear": "drops", "dare_ties": "drops"}
    keep = getattr(given, keeps[method]) if method in keeps else None
    return {
        "weight": weight, "keep": keep, "ballot": Ballot(True, normalized) if elected else None, "subtract": method != "linear"
    }  # fmt: skip


def call(method: str, given: Tensors, asked: dict[str, Any], dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    """The method as one call; of SLERP and Model Stock both passes."""
    if method == "slerp":
        return lambda: slerp(given.base, given.sources[0], [0.3], dtype=dtype)
    if method == "model_stock":
        return lambda: model_stock(given.inputs, {}, dtype or given.base.dtype)
    base = None if method == "linear" else given.base
    return lambda: combine(base, given.sources, **asked, dtype=dtype)


def specified(method: str, given: Tensors, asked: dict[str, Any], stretch: slice) -> Tensor:
    """What plain torch makes of a stretch of the tensors, float32: random numbers of a whole large one take it a minute."""
    base, weight = None if method == "linear" else given.base, tuple(w[0] for w in asked["weight"])
    deltas = Deltas(base, given.sources, asked["keep"], asked["subtract"])
    blend = Blend(deltas, Group(weight, 1.0), asked["ballot"])
    return torch.cat([blend(piece) for piece in deltas.chunks(stretch)])


def moved(method: str, given: Tensors) -> int:
    """Bytes that must be read and written."""
    count = len(given.sources)
    passes = {"linear": count + 1, "slerp": 5, "model_stock": 2 * count + 3}.get(method, count + 2)
    ranks = sum(part.nbytes for part in given.ranked.ranks) if method == "della" else 0
    return passes * given.base.nbytes + ranks


def plain(method: str, given: Tensors, asked: dict[str, Any]) -> Callable[..., Tensor]:
    """The method as one would write it in torch, for torch.compile too: whole tensors at a time, random numbers torch's own."""
    if method in ("slerp", "model_stock"):
        return _angles(method, given)
    keep_rate, weight = 1 - RATE, 1 / len(given.sources)
    trims = [trim.magnitude for trim in asked["keep"]] if method == "ties" else []
    uppers = [trim.magnitude for trim in asked["keep"].inner] if method == "breadcrumbs" else []
    lowers = [trim.magnitude for trim in asked["keep"].outer] if method == "breadcrumbs" else trims
    ranked = given.ranked if method == "della" else None

    def merge(base: Tensor, *sources: Tensor) -> Tensor:
        start = base.float()
        if method == "linear":
            return (functools.reduce(torch.add, (source.float() for source in sources)) * weight).to(base.dtype)
        deltas = [source.float() - start for source in sources]
        if method in ("ties", "breadcrumbs"):
            deltas = [torch.where(delta.abs() >= lower, delta, 0) for delta, lower in zip(deltas, lowers, strict=True)]
        if method == "breadcrumbs":
            deltas = [torch.where(delta.abs() < upper, delta, 0) for delta, upper in zip(deltas, uppers, strict=True)]
        if method.startswith("dare"):
            deltas = [torch.where(torch.rand_like(delta) >= RATE, delta / keep_rate, 0) for delta in deltas]
        if ranked is not None:
            pairs = [table[rank.long().view(base.shape)] for table, rank in zip(ranked.chances, ranked.ranks, strict=True)]
            deltas = [
                torch.where(torch.rand_like(delta) >= pair[..., 0], delta * pair[..., 1], 0)
                for delta, pair in zip(deltas, pairs, strict=True)
            ]
        votes = [delta * weight for delta in deltas]
        total = sum(votes[1:], votes[0])
        if asked["ballot"] is not None:
            sign = torch.where(total >= 0, 1.0, -1.0)
            shares = [(vote * sign).relu() for vote in votes]
            total = sum(shares[1:], shares[0]) * sign
            if asked["ballot"].normalize:
                agree = [torch.where(share > 0, weight, 0.0) for share in shares]
                total = total / sum(agree[1:], agree[0]).clamp(min=1e-9)
        return (start + total).to(base.dtype)

    return merge


def _angles(method: str, given: Tensors) -> Callable[..., Tensor]:
    """The methods of angles as one would write them for torch.compile: no value leaves the device."""
    count = len(given.sources)

    def cosine(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum() / ((x * x).sum() * (y * y).sum()).sqrt()

    def slerp(base: Tensor, source: Tensor) -> Tensor:
        a, b = base.float(), source.float()
        dot, t = cosine(a, b), 0.3
        omega = dot.clamp(-1, 1).acos()
        straight, sine = dot.abs() > STRAIGHT, omega.sin()
        left = torch.where(straight, 1 - t, ((1 - t) * omega).sin() / sine)
        right = torch.where(straight, t, (t * omega).sin() / sine)
        return (left * a + right * b).to(base.dtype)

    def model_stock(base: Tensor, *sources: Tensor) -> Tensor:
        start = base.float()
        deltas = [source.float() - start for source in sources]
        cosines = [cosine(x, y) for x, y in combinations(deltas, 2)]
        mean = sum(cosines[1:], cosines[0]) / len(cosines)
        t = count * mean / (1 + (count - 1) * mean)
        return (start + t / count * sum(deltas[1:], deltas[0])).to(base.dtype)

    return slerp if method == "slerp" else model_stock
