"""RAM: what one source alone has changed is added, what several have is averaged. Reinforced Agent Merging (arXiv:2601.13572)."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.methods.combine import Group
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs, one_number
from evomerge.methods.pointwise import pointwise, terms_of


def ram(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """Changed is what differs from the base by more than `epsilon`; less than that is dropped."""
    epsilon = one_number(knobs, "epsilon", 1e-5)

    def averaged(delta: Tensor, _: slice, __: Group) -> Tensor:
        changed = (delta.abs() > epsilon).to(delta.dtype)
        return (delta * changed).sum(0) / changed.sum(0).clamp(min=1)

    return pointwise(inputs, averaged, dtype)


def ramplus_tl(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """RAM+, each tensor for itself: what is a source's own grows by 1 + r · min(α, shared/own), to make up for its averaging."""
    epsilon = one_number(knobs, "epsilon", 1e-5)
    growth = _growth(inputs, epsilon, one_number(knobs, "r", 0.1), one_number(knobs, "alpha", 0.2))

    def averaged(delta: Tensor, _: slice, __: Group) -> Tensor:
        changed = (delta.abs() > epsilon).to(delta.dtype)
        count = changed.sum(0)
        factor = torch.where(count == 1, growth.to(delta.dtype), 1 / count.clamp(min=1))  # [K, n]
        return (delta * changed * factor).sum(0)

    return pointwise(inputs, averaged, dtype)


def _growth(inputs: Inputs, epsilon: float, r: float, alpha: float) -> Tensor:
    """λ of each source, [K, 1] in float64."""
    own, shared = inputs.once(("own and shared", epsilon), lambda: _counts(inputs, epsilon)).double().unbind(0)
    ratio: Tensor = (shared / own.clamp(min=epsilon)).nan_to_num(0.0).clamp(0, alpha)
    return ratio.mul(r).add(1).unsqueeze(1)


def _counts(inputs: Inputs, epsilon: float) -> Tensor:
    """How many elements each source alone has changed, and how many with others: [2, K]."""
    deltas = terms_of(inputs)
    counts = torch.zeros(2, deltas.count, dtype=torch.long, device=deltas.device)
    for piece in deltas.chunks():
        changed = deltas.whole(piece).abs() > epsilon
        alone = changed.sum(0) == 1
        counts[0] += (changed & alone).sum(1)
        counts[1] += (changed & ~alone).sum(1)
    return counts
