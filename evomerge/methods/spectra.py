"""Merges of the deltas' singular vectors: for matrices; of what is none, a plain mean of the deltas is added.

Everything happens in float64: small singular values keep no digit otherwise. An SVD takes a while, minutes for an embedding of
100,000 rows: give such tensors a rule of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evomerge.methods.combine import groups
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs, rows, whole_numbers
from evomerge.methods.pointwise import pointwise, terms_of


def tsvm(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """θ₀ + λ U⊥ S V⊥ᵀ: the top 1/K singular vectors of each delta, made orthogonal to each other's. TSV-M (arXiv:2412.00081).

    Gargiulo et al. 2025. U⊥ is the orthonormal matrix nearest to all the U side by side. A weight multiplies a source's S.
    """
    weight = whole_numbers(inputs, {"weight": 1.0, **knobs}, "weight")
    return _added(inputs, knobs, weight, lambda delta: _orthogonal_sum(delta, weight), dtype)


def iso_c(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """θ₀ + λ σ̄ U Vᵀ of Σ wₖδₖ = U S Vᵀ: every direction of the sum as strong as their mean. Iso-C (arXiv:2502.04959).

    Marczak et al. 2025, who take λ between 1.3 and 1.5.
    """
    weight = whole_numbers(inputs, {"weight": 1.0, **knobs}, "weight")
    return _added(inputs, knobs, weight, lambda delta: _even(_weighted(delta, weight).sum(0)), dtype)


def _added(
    inputs: Inputs, knobs: Knobs, weight: Sequence[float], merge: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> Tensor:
    """base + λ · the merged delta, λ for each of equal groups of rows."""
    scale, deltas = rows(knobs.get("lambda", 1.0)), terms_of(inputs)
    shape = inputs.sources[0].shape
    if len(shape) != 2 or not shape.numel():
        share = 1 / len(weight)
        return pointwise(inputs, lambda d, _, g: _weighted(d, weight).sum(0) * share * g.weight[0], dtype, [scale])
    assert inputs.base is not None
    delta = deltas.whole(slice(0, deltas.size)).double().view(-1, *shape)  # [K, m, n]
    merged = merge(delta) if delta.isfinite().all() else torch.full_like(delta[0], torch.nan)
    for stretch, group in groups(deltas.size, [scale], (1.0,)):
        merged.view(-1)[stretch] *= group.weight[0]
    return merged.add_(inputs.base).to(dtype)


def _weighted(delta: Tensor, weight: Sequence[float]) -> Tensor:
    """[K, …] times a number for each source."""
    return delta * torch.tensor(weight, dtype=delta.dtype, device=delta.device).view(-1, *[1] * (delta.ndim - 1))


def _orthogonal_sum(delta: Tensor, weight: Sequence[float]) -> Tensor:
    kept = max(min(delta.shape[1:]) // len(delta), 1)
    parts = [torch.linalg.svd(one, full_matrices=False) for one in delta]
    left = _nearest_orthonormal(torch.cat([u[:, :kept] for u, _, _ in parts], 1))  # [m, K·kept]
    right = _nearest_orthonormal(torch.cat([v[:kept].T for _, _, v in parts], 1))
    strength = torch.cat([w * s[:kept] for w, (_, s, _) in zip(weight, parts, strict=True)])
    return (left * strength) @ right.T


def _nearest_orthonormal(columns: Tensor) -> Tensor:
    """The polar factor: P Qᵀ of P D Qᵀ."""
    p, _, q = torch.linalg.svd(columns, full_matrices=False)
    return torch.mm(p, q)


def _even(delta: Tensor) -> Tensor:
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return torch.mm(u, v).mul_(s.mean())
