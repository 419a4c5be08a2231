"""MagPrune: the smaller a delta is among those of its row, the likelier it is dropped. Deep et al. 2024 (arXiv:2406.11617).

    pᵣ = density - ε + 2ε · (r - 1)/(n - 1)        the chance to stay of the r-th smallest of a row's n magnitudes

Equal magnitudes rank by position, lowest first. A row of one element stays with p = density. Where density ± ε would leave
[0, 1], ε is narrowed so that it does not: mergekit refuses such a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge import masks
from evomerge.masks import Marks
from evomerge.methods.inputs import Inputs

PIECE = 1 << 18  # elements at a time, at least a row


def magprune(inputs: Inputs, density: Sequence[float], epsilon: Sequence[float], *, rescale: bool) -> Marks:
    """What stays of each delta; with `rescale` each survivor is divided by its own chance to stay, as the paper does."""
    parts = [_factor(inputs, k, *pair, rescale=rescale) for k, pair in enumerate(zip(density, epsilon, strict=True))]
    return Marks(torch.stack(parts), (1.0,) * len(parts))


def chances(density: float, epsilon: float, size: int) -> NDArray[np.float64]:
    """The chance to stay of each rank in a row of `size`, from the smallest magnitude to the largest."""
    half = max(0.0, min(epsilon, density, 1 - density))
    return density - half + 2 * half * (np.arange(size) / (size - 1) if size > 1 else np.full(size, 0.5))


def _factor(inputs: Inputs, k: int, density: float, epsilon: float, *, rescale: bool) -> Tensor:
    source, width = inputs.sources[k], _width(inputs)
    wanted = inputs.dtype if rescale else torch.bool
    if density >= 1 or density <= 0:
        return torch.full((source.numel(),), density >= 1, dtype=wanted, device=source.device)
    chance = chances(density, epsilon, width)
    limit = torch.from_numpy((1 - chance).astype(np.float32)).to(source.device)
    growth = torch.from_numpy(1 / np.where(chance > 0, chance, np.inf)).to(source.device, inputs.dtype)
    factor = torch.empty(source.numel(), dtype=wanted, device=source.device)
    ranks = inputs.once(("ranks", k), lambda: _ranks(inputs, k, width))
    for piece in _pieces(source.numel(), width):
        rank = ranks(piece).long()
        stays = _uniform(inputs, k, piece) >= limit[rank]
        factor[piece] = stays * growth[rank] if rescale else stays
    return factor


def _ranks(inputs: Inputs, k: int, width: int) -> Callable[[slice], Tensor]:
    """The rank in its row of every element of a piece: kept whole where the inputs are, ranked on demand otherwise."""

    def of(piece: slice) -> Tensor:
        return ranked(inputs.delta(k, piece).view(-1, width)).view(-1)

    if not inputs.resident:
        return of
    whole = torch.empty(inputs.sources[k].numel(), dtype=torch.int32, device=inputs.sources[k].device)
    for piece in _pieces(len(whole), width):
        whole[piece] = of(piece)
    return lambda piece: whole[piece]


def ranked(delta: Tensor) -> Tensor:
    """The rank of each magnitude in its row from 0, compared as float32: int32, [R, n]."""
    position = torch.arange(delta.shape[1], device=delta.device)
    packed = (delta.abs().float().view(torch.int32).long() << 32) | position  # bits order as magnitudes do, then positions
    if packed.is_cuda:
        packed = packed.sort(dim=1).values
    else:
        packed.numpy().sort(axis=1)  # several times faster than torch's
    ranks = torch.empty(delta.shape, dtype=torch.int32, device=delta.device)
    return ranks.scatter_(1, packed & 0xFFFFFFFF, position.int().expand(delta.shape))


def _uniform(inputs: Inputs, k: int, piece: slice) -> Tensor:
    if inputs.resident:
        return inputs.uniform[k, piece]
    return masks.draw(inputs.keys[k], piece.start, piece.stop - piece.start).to(inputs.sources[k].device)


def _width(inputs: Inputs) -> int:
    """How long a row is: a vector is one row."""
    shape = inputs.sources[0].shape
    return max(1, shape[-1] if len(shape) > 1 else shape.numel())


def _pieces(size: int, width: int) -> Iterator[slice]:
    step = max(PIECE // width, 1) * width
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
