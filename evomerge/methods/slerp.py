"""Spherical interpolation between two models (Shoemake 1985), each tensor taken as one flat vector.

    sin((1-t)ω)/sin ω · a + sin(tω)/sin ω · b,     cos ω = ⟨a, b⟩ / ‖a‖‖b‖

The vectors keep their lengths: only the coefficients are the sphere's. Nearly parallel vectors are interpolated linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.methods.combine import Deltas, combine
from evomerge.methods.vectors import gram

STRAIGHT = 0.9995  # |cos ω| from which mergekit, and so we, take the line: the rule for most fine-tunes
PARALLEL = 1 - 1e-12  # beyond, float64 does not tell an arc from its line
ZERO_NORM = 1e-8


def slerp(
    a: Tensor,
    b: Tensor,
    t: Sequence[float],
    *,
    cosine: float | None = None,
    straight: float = STRAIGHT,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """From `a` at t = 0 to `b` at t = 1; one t for each of equal groups of rows. `cosine` is theirs, where it is known."""
    cosine = cosine_of(a, b) if cosine is None else cosine
    left, right = zip(*(coefficients(part, cosine, straight) for part in t), strict=True)
    return combine(None, [a, b], [left, right], subtract=False, dtype=dtype)


def coefficients(t: float, cosine: float, straight: float = STRAIGHT) -> tuple[float, float]:
    """What each end is multiplied by."""
    if abs(cosine) > straight:
        return 1 - t, t
    omega = math.acos(cosine)
    return math.sin((1 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)


def cosine_of(a: Tensor, b: Tensor, shortest: float = ZERO_NORM) -> float:
    """cos ω between two tensors; a vector no longer than `shortest` is orthogonal to all."""
    aa, ab, bb = products(a, b)
    lengths = [length if (length := math.sqrt(square)) > shortest else 1.0 for square in (aa, bb)]
    return float(ab / (lengths[0] * lengths[1]))


def products(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """⟨a, a⟩, ⟨a, b⟩, ⟨b, b⟩, summed in float64."""
    (aa, ab), (_, bb) = gram(Deltas(None, [a, b], None, subtract=False)).tolist()
    return aa, ab, bb
