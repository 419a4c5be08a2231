"""What the kernels are timed on: tensors as large models have them, and each method as its one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from evomerge import masks
from evomerge.masks import Ballot, Drops
from evomerge.methods.combine import combine
from evomerge.methods.slerp import slerp
from evomerge.methods.threshold import Magnitudes

SHAPES = {"7B q_proj": (4096, 4096), "7B up_proj": (11008, 4096), "70B q_proj": (8192, 8192), "70B up_proj": (28672, 8192)}
COUNTS = (2, 3, 8)
METHODS = ("linear", "ties", "dare_linear", "dare_ties", "slerp")
DENSITY, RATE = 0.2, 0.9  # as published


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
    def trims(self) -> list[masks.Trim]:
        """Thresholds of each source, resident: looked for once."""
        return [Magnitudes(partial(self._delta, k), self.base.numel()).trim(DENSITY) for k in range(len(self.sources))]

    def _delta(self, k: int, piece: slice) -> Tensor:
        return self.sources[k].view(-1)[piece].float() - self.base.view(-1)[piece].float()

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
    ballot = Ballot(True, method == "ties") if method.endswith("ties") else None
    keep = given.trims if method == "ties" else given.drops if method.startswith("dare") else None
    return {"weight": weight, "keep": keep, "ballot": ballot, "subtract": method != "linear"}


def call(method: str, given: Tensors, asked: dict[str, Any], dtype: torch.dtype | None = None) -> Callable[[], Tensor]:
    """The method as one call; of SLERP both passes."""
    if method == "slerp":
        return lambda: slerp(given.base, given.sources[0], [0.3], dtype=dtype)
    base = None if method == "linear" else given.base
    return lambda: combine(base, given.sources, **asked, dtype=dtype)


def moved(method: str, given: Tensors) -> int:
    """Bytes that must be read and written."""
    passes = {"linear": len(given.sources) + 1, "slerp": 5}.get(method, len(given.sources) + 2)
    return passes * given.base.nbytes


def plain(method: str, given: Tensors, asked: dict[str, Any]) -> Callable[[], Tensor] | None:
    """The method as one would write it for torch.compile, whole tensors at a time; of DARE the random numbers are torch's."""
    if method == "slerp":
        return None
    sources, trims = given.sources, [(trim.magnitude) for trim in asked["keep"] or ()] if method == "ties" else []
    keep_rate, weight = 1 - RATE, 1 / len(sources)

    def merge(base: Tensor, *sources: Tensor) -> Tensor:
        start = base.float()
        if method == "linear":
            return (sum(source.float() for source in sources) * weight).to(base.dtype)  # type: ignore[union-attr]
        deltas = [source.float() - start for source in sources]
        if method == "ties":
            deltas = [torch.where(delta.abs() >= trim, delta, 0) for delta, trim in zip(deltas, trims, strict=True)]
        else:
            deltas = [torch.where(torch.rand_like(delta) >= RATE, delta / keep_rate, 0) for delta in deltas]
        votes = [delta * weight for delta in deltas]
        total = sum(votes[1:], votes[0])
        if method.endswith("ties"):
            sign = torch.where(total >= 0, 1.0, -1.0)
            shares = [(vote * sign).relu() for vote in votes]
            total = sum(shares[1:], shares[0]) * sign
            if method == "ties":
                agree = [torch.where(share > 0, weight, 0.0) for share in shares]
                total = total / sum(agree[1:], agree[0]).clamp(min=1e-9)
        return (start + total).to(base.dtype)

    compiled = torch.compile(merge, dynamic=False)
    return lambda: compiled(given.base, *sources)
