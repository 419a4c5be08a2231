"""Methods whose every element is a function of its deltas alone: chunk by chunk through the cache, rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evomerge import kernels
from evomerge.methods.combine import Deltas, Group, groups
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Rows

Compute = Callable[[Tensor, slice, Group], Tensor]  # deltas [K, n] of a piece, with its group's numbers, become [n]


def pointwise(inputs: Inputs, compute: Compute, dtype: torch.dtype, numbers: Sequence[Rows] = ((1.0,),)) -> Tensor:
    """base + compute(δ), with `numbers` that each of equal groups of rows may have for itself."""
    deltas = terms_of(inputs)
    assert deltas.base is not None
    merged = kernels.result(inputs.sources[0].shape, dtype, deltas.device)
    flat = merged.view(-1)
    for stretch, group in groups(deltas.size, numbers, (1.0,)):
        for piece in deltas.chunks(stretch):
            flat[piece] = compute(deltas.whole(piece), piece, group).add(deltas.base[piece])
    return merged


def terms_of(inputs: Inputs) -> Deltas:
    """The deltas of all sources, to be read in chunks."""
    return Deltas(inputs.base, inputs.terms, None, subtract=not inputs.prepared)
