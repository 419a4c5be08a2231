"""Arcee Fusion: take from the source what matters unusually much, the base's value elsewhere. Arcee 2025, in mergekit.

importance = |δ| · KL(softmax of the source's row ‖ softmax of the base's row),   taken from median + 1.5 · (Q₃ - Q₁) on
"""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.masks import Marks
from evomerge.methods.combine import combine
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs
from evomerge.methods.ranked import ranked

EPSILON = 1e-8  # added to every probability
PIECE = 1 << 18  # elements at a time, at least a row


def arcee_fusion(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """The quartiles are those of the whole tensor; mergekit takes them from a random million where there are more elements."""
    taken = inputs.once("fusion", lambda: _outstanding(importance(inputs)))
    subtract = not inputs.prepared
    return combine(inputs.base, inputs.terms, [(1.0,)], keep=Marks(taken.view(1, -1), (1.0,)), subtract=subtract, dtype=dtype)


def importance(inputs: Inputs) -> Tensor:
    """Of every element, [N]: the divergences are small differences and taken in float64."""
    assert inputs.base is not None
    shape, size = inputs.base.shape, inputs.base.numel()
    width = max(1, shape[-1]) if shape else 1
    base, source = inputs.base.reshape(-1, width), inputs.sources[0].reshape(-1, width)
    found = torch.empty(size, dtype=inputs.dtype, device=inputs.base.device)
    step = max(PIECE // width, 1)
    for row in range(0, size // width, step):
        ours, theirs = base[row : row + step].double(), source[row : row + step].double()
        found.view(-1, width)[row : row + step] = (theirs - ours).abs() * _divergence(theirs, ours)
    return found


def _divergence(theirs: Tensor, ours: Tensor) -> Tensor:
    p, q = theirs.softmax(1) + EPSILON, ours.softmax(1) + EPSILON
    return (p * (p / q).log()).sum(1, keepdim=True)


def _outstanding(importance: Tensor) -> Tensor:
    """Where it is not below the threshold; the quartiles are elements, not between two."""
    if not len(importance):
        return importance.bool()
    places = [int(q * (len(importance) - 1)) for q in (0.25, 0.5, 0.75)]
    first, median, third = ranked(importance, places)
    return importance.ge(median + 1.5 * (third - first))
