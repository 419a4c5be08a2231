"""An average in which each weight counts by how much it matters to its model. Matena and Raffel 2022 (arXiv:2111.09832).

θ = Σ wₖ (Fₖ + ε) θₖ / Σ wₖ (Fₖ + ε)        Fₖ the diagonal of the Fisher information of model k, from `evomerge fisher`
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.errors import RecipeError
from evomerge.methods.combine import groups
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs, one_number, per_source

CHUNK = 1 << 18  # elements worked on at once


def fisher(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """`diagonals` holds one tensor for each source, of the weights' shape or a single number; without them all count alike.

    In float64: importances are of many magnitudes, and a mean of bfloat16 numbers often lies in the middle of two others.
    """
    weight, epsilon = per_source(inputs, knobs["weight"]), one_number(knobs, "epsilon", 1e-6)
    sources = [source.reshape(-1) for source in inputs.sources]
    spread = _spread(inputs, knobs.get("diagonals"))
    merged = torch.empty(inputs.sources[0].shape, dtype=dtype, device=sources[0].device)
    flat = merged.view(-1)
    for stretch, group in groups(flat.numel(), weight, (1.0,)):
        for start in range(stretch.start, stretch.stop, CHUNK):
            piece = slice(start, min(start + CHUNK, stretch.stop))
            flat[piece] = _average(inputs, sources, spread, group.weight, epsilon, piece)
    return merged


def _average(
    inputs: Inputs, sources: Sequence[Tensor], diagonals: Sequence[Tensor], weight: Sequence[float], epsilon: float, piece: slice
) -> Tensor:
    total = torch.zeros(piece.stop - piece.start, dtype=torch.float64, device=sources[0].device)
    divisor = torch.zeros_like(total)
    for source, diagonal, share in zip(sources, diagonals, weight, strict=True):
        importance = (diagonal[piece].double() + epsilon) * share
        total += importance * source[piece].double()
        divisor += importance
    if bool((divisor == 0).any()):
        raise RecipeError(f"fisher: weights and importances of {inputs.place.tensor} add up to 0; raise `epsilon` or a weight")
    return total / divisor


def _spread(inputs: Inputs, diagonals: Sequence[Tensor] | None) -> list[Tensor]:
    """A number for every weight: one that stands for a whole tensor is everybody's."""
    first = inputs.sources[0]
    given = diagonals or [torch.ones((), device=first.device)] * len(inputs.sources)
    return [diagonal.to(first.device).expand(first.shape).reshape(-1) for diagonal in given]
