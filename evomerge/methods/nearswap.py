"""NearSwap: move towards the source by at most t: what is near becomes the source's. alchemonaut 2024, QuartetAnemoi-70B."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.methods.combine import Group
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs, rows
from evomerge.methods.pointwise import pointwise

NEAREST = 1e-6  # a distance below counts as this much


def nearswap(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """θ₀ + δ · min(1, t / |δ|): the source where it is nearer than t, t away from the base where it is not."""

    def moved(delta: Tensor, _: slice, group: Group) -> Tensor:
        return (group.weight[0] / delta[0].abs().clamp(min=NEAREST)).clamp(0, 1).mul(delta[0])

    return pointwise(inputs, moved, dtype, [rows(knobs["t"])])
