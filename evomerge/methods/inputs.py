"""The tensors behind one output tensor, and what no recipe changes about them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from evomerge import kernels, masks
from evomerge.masks import Bands, Drops, Keep, Ranked, Trim
from evomerge.methods.combine import Deltas, norms
from evomerge.methods.slerp import cosine_of
from evomerge.methods.threshold import Magnitudes

Variant = Literal["paper", "mergekit"]
T = TypeVar("T")
Sparse = TypeVar("Sparse", Drops, Bands, Ranked)
TOO_SMALL = 1e-7  # mergekit rescales no delta whose L1 norm is below


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: what its random masks are a function of."""

    seed: int
    tensor: str
    sources: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Inputs:
    """One tensor of the base and of each source, in the order of `place.sources`.

    Build it once per tensor and keep it, `resident`, for a search; build it per merge and throw it away otherwise.
    """

    base: Tensor | None
    sources: tuple[Tensor, ...]
    place: Place
    resident: bool = False  # keep magnitudes by bin, eight bytes an element and source; in plain torch deltas and numbers too
    known: dict[Hashable, Any] | None = None  # what was found about these tensors when they were here before, and is to be kept

    @cached_property
    def magnitudes(self) -> tuple[Magnitudes, ...]:
        """Of each delta: what every density is looked up in."""
        size, laid_out = self.sources[0].numel(), self.resident and not self.sources[0].is_cuda
        kept = self.resident or self.known is not None
        memory = [self.once(("magnitudes", k), dict[Any, Any]) if kept else None for k in range(len(self.sources))]
        return tuple(
            Magnitudes(partial(self.delta, k), size, resident=laid_out, pair=(self.base, source), memory=memory[k])
            for k, source in enumerate(self.sources)
        )

    @cached_property
    def deltas(self) -> Tensor:
        """sourceₖ - base, in the dtype of the computation."""
        whole = Deltas(self.base, self.sources, None, subtract=True).whole(slice(0, self.sources[0].numel()))
        return whole.view(len(self.sources), *self.sources[0].shape)  # [K, *shape]

    @cached_property
    def uniform(self) -> Tensor:
        """The random numbers of each source's copy of this tensor."""
        drawn = [masks.draw(key, 0, self.sources[0].numel()) for key in self.keys]
        return torch.stack(drawn).to(self.sources[0].device)  # [K, N]

    @cached_property
    def keys(self) -> tuple[int, ...]:
        return tuple(masks.key(self.place.seed, source, self.place.tensor) for source in self.place.sources)

    @cached_property
    def norms(self) -> list[float]:
        """‖δₖ‖₁"""
        return self.once("norms", lambda: norms(self.base, self.terms, subtract=not self.prepared))

    @cached_property
    def cosine(self) -> float:
        """Of the angle between the base and the one source."""
        base = self.base
        assert base is not None
        return self.once("cosine", lambda: cosine_of(base, self.sources[0]))

    def trims(self, density: Sequence[float]) -> list[Trim]:
        """What keeps a share of each delta."""
        return [vector.trim(share) for vector, share in zip(self.magnitudes, density, strict=True)]

    def drops(self, rates: Sequence[float], rescale: Variant | None) -> Drops:
        """What drops a share of each delta at random, and how the rest is rescaled to make up for it."""
        drops = Drops(tuple(rates), self.keys, (1.0,) * len(rates), self.uniform if self.prepared else None)
        if rescale == "paper":
            return replace(drops, rescale=tuple(1 / (1 - rate) if rate < 1 else 1.0 for rate in rates))
        return self.rescaled(drops) if rescale == "mergekit" else drops

    def bands(self, density: Sequence[float], gamma: Sequence[float]) -> Bands:
        """What keeps a share of each delta below its outliers, a share gamma of it; density wins where both do not fit."""
        trims = [vector.band(*pair) for vector, *pair in zip(self.magnitudes, density, gamma, strict=True)]
        return Bands(tuple(outer for outer, _ in trims), tuple(inner for _, inner in trims), (1.0,) * len(trims))

    def rescaled(self, keep: Sparse) -> Sparse:
        """Rescaled by ‖δ‖₁ / ‖m·δ‖₁, to the length that each delta had: what mergekit does instead of 1/(1-p)."""
        return replace(keep, rescale=self._ratios(keep))

    def _ratios(self, keep: Keep) -> tuple[float, ...]:
        kept = norms(self.base, self.terms, keep, subtract=not self.prepared)
        pairs = zip(self.norms, kept, strict=True)
        return tuple(1.0 if min(before, after) < TOO_SMALL else before / after for before, after in pairs)

    def once(self, what: Hashable, compute: Callable[[], T], *, large: bool = False) -> T:
        """What no recipe changes about this tensor, computed once where the inputs are kept; `large` are as many numbers."""
        if not self.resident and (self.known is None or large):
            return compute()
        if what not in self._known:
            self._known[what] = compute()
        return cast(T, self._known[what])

    @cached_property
    def _known(self) -> dict[Hashable, Any]:
        return {} if self.known is None else self.known

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation."""
        doubles = torch.float64 in {tensor.dtype for tensor in (self.base, *self.sources) if tensor is not None}
        return torch.float64 if doubles else torch.float32

    @property
    def prepared(self) -> bool:
        """Whether deltas and random numbers are kept: for plain torch. A kernel makes them faster than it would read them."""
        return self.resident and self.base is not None and kernels.side(self.base, *self.sources) == "torch"

    @property
    def terms(self) -> Sequence[Tensor]:
        """What `combine` adds up: the deltas where they are prepared, the sources otherwise."""
        return cast(Sequence[Tensor], self.deltas) if self.prepared else self.sources

    def delta(self, k: int, piece: slice) -> Tensor:
        """A piece of a flat delta, float32: what magnitudes are compared by."""
        if self.prepared:
            return self.deltas[k].view(-1)[piece].float()
        return Deltas(self.base, [self.sources[k]], None, subtract=True).whole(piece)[0].float()
