"""MagPrune: the smaller a delta is among those of its row, the likelier it is dropped. Deep et al. 2024 (arXiv:2406.11617).

    pᵣ = density - ε + 2ε · (r - 1)/(n - 1)        the chance to stay of the r-th smallest of a row's n magnitudes

Equal magnitudes rank by position, lowest first. A row of one element stays with p = density. Where density ± ε would leave
[0, 1], ε is narrowed so that it does not: mergekit refuses such a pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge import kernels
from evomerge.masks import Ranked
from evomerge.methods.inputs import Inputs

PIECE = 1 << 18  # elements at a time, at least a row
SHORT = 1 << 15  # ranks of rows up to so long are int16


def magprune(inputs: Inputs, density: Sequence[float], epsilon: Sequence[float], *, rescale: bool) -> Ranked:
    """What stays of each delta; with `rescale` each survivor is divided by its own chance to stay, as the paper does."""
    width = width_of(inputs.sources[0])
    chance = np.stack([chances(*pair, width) for pair in zip(density, epsilon, strict=True)])  # [K, W]
    limit = (1 - chance).astype(np.float32).astype(np.float64)
    growth = 1 / np.where(chance > 0, chance, np.inf) if rescale else np.ones_like(chance)
    table = torch.from_numpy(np.stack([limit, growth], axis=2)).to(inputs.sources[0].device, inputs.dtype)
    ranks = tuple(_ranks(inputs, k, width, bool(np.ptp(row))) for k, row in enumerate(chance))
    return Ranked(ranks, table, inputs.keys, (1.0,) * len(ranks), inputs.uniform if inputs.prepared else None)


def chances(density: float, epsilon: float, size: int) -> NDArray[np.float64]:
    """The chance to stay of each rank in a row of `size`, from the smallest magnitude to the largest."""
    half = max(0.0, min(epsilon, density, 1 - density))
    return min(max(density, 0.0), 1.0) - half + 2 * half * (np.arange(size) / (size - 1) if size > 1 else np.full(size, 0.5))


def width_of(tensor: Tensor) -> int:
    """How long a row is: a vector is one row."""
    return max(1, tensor.shape[-1] if tensor.ndim > 1 else tensor.numel())


def _ranks(inputs: Inputs, k: int, width: int, matter: bool) -> Tensor:
    """The rank of every element in its row, [N]; zeros where all ranks have the same chance."""
    source = inputs.sources[k]
    if not matter:
        return torch.zeros((), dtype=dtype_of(width), device=source.device).expand(source.numel())
    return inputs.once(("ranks", k), lambda: ranks(inputs.base, source, width), large=True)


def ranks(base: Tensor | None, source: Tensor, width: int) -> Tensor:
    """Where each magnitude of source - base stands in its row of `width` elements, from the smallest, 0: int16 or int32, [N]."""
    if fused := kernels.twin("ranks", base, [source]):
        return cast(Tensor, fused(base, source, width))
    start, flat = None if base is None else base.reshape(-1), source.reshape(-1)
    kind = torch.float64 if torch.float64 in {source.dtype, source.dtype if base is None else base.dtype} else torch.float32
    found = torch.empty(source.numel(), dtype=dtype_of(width), device=source.device)
    for piece in _pieces(len(found), width):
        delta = flat[piece].to(kind) if start is None else flat[piece].to(kind) - start[piece].to(kind)
        found[piece] = ranked(delta.view(-1, width)).view(-1)
    return found


def dtype_of(width: int) -> torch.dtype:
    """The dtype that ranks in a row of so many elements need."""
    return torch.int16 if width <= SHORT else torch.int32


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


def _pieces(size: int, width: int) -> Iterator[slice]:
    step = max(PIECE // width, 1) * width
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
