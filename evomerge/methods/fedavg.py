"""Federated averaging: a round of clients' updates, each clipped to a length. McMahan et al. 2017 (arXiv:1602.05629).

θ₀ + λ Σ nₖ δₖ min(1, C/‖δₖ‖) / Σ nₖ        clipping as in DP-FedAvg, McMahan et al. 2018 (arXiv:1710.06963)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.methods.combine import combine
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs, one_number, per_source, rows, shares
from evomerge.methods.pointwise import terms_of
from evomerge.methods.vectors import gram


def fedavg(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """Weights are the clients' shares, λ is the server's step; a length is that of all tensors of a rule together.

    One tensor does not know it: the knob `lengths` holds one for each source; without it the tensor stands for the model.
    """
    limit = one_number(knobs, "clip_norm", math.inf)
    lengths = knobs.get("lengths") or [math.sqrt(square) for square in squares(inputs)]
    clip = [min(1.0, limit / length) if length else 1.0 for length in lengths]
    share = shares(inputs, per_source(inputs, knobs.get("weight", 1.0)))
    weight = [tuple(group[k] * clip[k] for group in share) for k in range(len(clip))]
    scale = rows(knobs.get("lambda", 1.0))
    return combine(inputs.base, inputs.terms, weight, scale=scale, subtract=not inputs.prepared, dtype=dtype)


def squares(inputs: Inputs) -> Sequence[float]:
    """‖δₖ‖² of each source's copy of a tensor."""
    products: list[float] = inputs.once(("gram", "deltas"), lambda: gram(terms_of(inputs))).diagonal().tolist()
    return products
