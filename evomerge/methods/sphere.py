"""Means on a sphere of the models behind one output tensor, or of their deltas: directions apart from lengths.

Every mean lies in the span of what it is a mean of, so each is K coefficients, found from the K × K inner products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.methods.combine import Deltas, combine, groups
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs, no_average, one_number, per_source
from evomerge.methods.vectors import gram

Vector = NDArray[np.float64]  # [K], coefficients or weights
Mean = Callable[[Vector, Vector], Vector]  # of inner products [K, K] and weights
ANTIPODE = 1e-7  # a model this near to opposite pulls in no direction


def multislerp(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """The weighted mean direction at the weighted mean length. Goddard 2024, "MultiSLERP: wow what a cool idea".

    As published it then takes a step in the tangent space at that direction, Σ wᵢ(uᵢ - ⟨uᵢ, m⟩m): which is 0, since m is
    parallel to Σ wᵢuᵢ. Directions that cancel (no shorter than `epsilon`) are averaged as they are; mergekit refuses them.
    """
    epsilon = one_number(knobs, "epsilon", 1e-8)
    return _mean(inputs, {"weight": 1.0, "normalize": True, **knobs}, lambda g, w: directions(g, w, epsilon), dtype)


def karcher(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """The direction nearest to all in squared angle, at the mean length. Karcher 1977; for models arXiv:2603.04972.

    A model of length 0 has no direction and counts with its length alone. mergekit holds to that below `tol` already and knows
    equal weights only.
    """
    steps, tol = int(knobs.get("max_iter", 10)), one_number(knobs, "tol", 1e-5)
    return _mean(inputs, {"weight": 1.0, **knobs, "normalize": True}, lambda g, w: nearest(g, w, steps, tol), dtype)


def _mean(inputs: Inputs, knobs: Knobs, mean: Mean, dtype: torch.dtype) -> Tensor:
    deltas, between = between_of(inputs, knobs), knobs.get("between", "models")
    products = inputs.once(("gram", between), lambda: gram(deltas)).cpu().numpy()
    weight = per_source(inputs, knobs["weight"])
    columns = [mean(products, _weights(inputs, group.weight, knobs["normalize"])) for _, group in groups(0, weight, (1.0,))]
    base, terms = (inputs.base, inputs.terms) if between == "deltas" else (None, inputs.sources)
    return combine(base, terms, np.stack(columns, 1).tolist(), subtract=deltas.subtract, dtype=dtype)


def between_of(inputs: Inputs, knobs: Knobs) -> Deltas:
    """What the angles are between: the models, or what they differ by from the base."""
    if knobs.get("between", "models") == "deltas":
        return Deltas(inputs.base, inputs.terms, None, subtract=not inputs.prepared)
    return Deltas(None, inputs.sources, None, subtract=False)


def _weights(inputs: Inputs, weight: Sequence[float], normalize: bool) -> Vector:
    return np.array(weight) / ((math.fsum(weight) or no_average(inputs)) if normalize else 1.0)


def directions(products: Vector, weight: Vector, epsilon: float) -> Vector:
    """m̂ · Σ wᵢ|vᵢ| with m = Σ wᵢvᵢ/|vᵢ|, as coefficients of the vᵢ."""
    lengths = np.sqrt(np.diag(products))
    mean = weight / (lengths + epsilon)
    length = _length(mean, products)
    if len(weight) == 1 or length < epsilon:
        return weight if len(weight) > 1 else np.ones(1)
    return mean / length * float(weight @ lengths)


def nearest(products: Vector, weight: Vector, steps: int, tol: float) -> Vector:
    """The Karcher mean of the directions times the mean length, by Riemannian gradient steps of size 1."""
    lengths = np.sqrt(np.diag(products))
    valid = np.flatnonzero(lengths != 0)
    if not len(valid):
        return np.zeros_like(weight)
    units = np.diag(1 / np.where(lengths == 0, np.inf, lengths))  # row i: the coefficients of uᵢ
    share = weight / (weight[valid].sum() or 1.0)
    mean = share[valid] @ units[valid]
    mean = mean / _length(mean, products) if _length(mean, products) >= tol else units[valid[0]]
    for _ in range(steps):
        tangent = sum((share[i] * _towards(units[i], mean, products, tol) for i in valid), np.zeros_like(weight))
        step = _length(tangent, products)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean = mean / _length(mean, products)
    return mean * float(weight @ lengths)


def _towards(unit: Vector, mean: Vector, products: Vector, tol: float) -> Vector:
    """The tangent at `mean` that leads to `unit`, as long as the angle between them."""
    dot = float(np.clip(mean @ products @ unit, -1, 1))
    angle = math.acos(dot)
    if angle < tol or math.pi - angle < ANTIPODE:
        return np.zeros_like(mean)
    return angle / math.sin(angle) * (unit - dot * mean)


def _length(coefficients: Vector, products: Vector) -> float:
    return math.sqrt(max(float(coefficients @ products @ coefficients), 0.0))
