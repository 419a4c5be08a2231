"""RegMean: the linear layer that answers most like each model on that model's inputs. Jin et al. 2023 (arXiv:2212.09849).

W = (Σ wₖ Wₖ Gₖ) (Σ wₖ Gₖ)⁻¹        Gₖ = XₖᵀXₖ with what lies off the diagonal times α; W is [out, in]
"""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.methods.combine import combine
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs, one_number, per_source, shares

RIDGE = 1e-9  # of the mean of the diagonals: inputs that no text moves are averaged


def regmean(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """`grams` holds XᵀX for each source, [in, in]; without them, as for norms and embeddings, a tensor is averaged.

    Solved in float64. Weights are whole numbers of a tensor, for the equations couple its rows' inputs.
    """
    grams = knobs.get("grams")
    share = shares(inputs, per_source(inputs, knobs.get("weight", 1.0)))
    if not grams or inputs.sources[0].dim() != 2:
        weight = [tuple(group[k] for group in share) for k in range(len(inputs.sources))]
        return combine(None, inputs.sources, weight, subtract=False, dtype=dtype)
    alpha = one_number(knobs, "alpha", 0.9)
    scaled = [s * shrunk(gram.to(inputs.sources[0].device).double(), alpha) for s, gram in zip(share[0], grams, strict=True)]
    ridge = RIDGE * float(sum(gram.diagonal().mean() for gram in scaled)) or 1.0
    for s, gram in zip(share[0], scaled, strict=True):
        gram.diagonal().add_(s * ridge)
    right = sum((source.double() @ gram for source, gram in zip(inputs.sources, scaled, strict=True)), torch.zeros(()))
    whole = torch.stack(scaled).sum(0)
    solved: Tensor = torch.linalg.solve(whole, right, left=False)
    return solved.to(dtype)


def shrunk(gram: Tensor, alpha: float) -> Tensor:
    """α G + (1 - α) diag G: what keeps the sum well conditioned."""
    return alpha * gram + (1 - alpha) * torch.diag(gram.diagonal())
