"""Model Stock: the angle between deltas says how far to go from the base to the average. Jang et al. 2024 (arXiv:2403.19522).

θ₀ + t · mean of δₖ,     t = K cos ω / (1 + (K - 1) cos ω)        ω: the mean angle between two deltas
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from evomerge.methods.combine import combine
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs
from evomerge.methods.pointwise import terms_of
from evomerge.methods.vectors import cosine, gram, gram_of_rows, mix_rows

FLOOR = 1e-6  # mergekit divides by no product of two lengths, and by no 1 + (K - 1) cos ω, that is smaller


def model_stock(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """For the whole tensor, or with `filter_wise` for each of its rows; `clip` holds t in [0, 1] where deltas oppose.

    `mergekit` takes the angle between short deltas (a product of lengths below 1e-6) for wider than it is, `paper` does not.
    """
    count, shape = len(inputs.sources), inputs.sources[0].shape
    deltas = terms_of(inputs)
    if knobs.get("filter_wise", False) and len(shape) > 1:
        width = max(1, shape[-1])
        products = inputs.once("gram of rows", lambda: gram_of_rows(deltas, width))
        t = ratio(products, knobs) / count  # [R]
        return mix_rows(deltas, width, t.unsqueeze(1).expand(-1, count), shape, dtype)
    t = ratio(inputs.once(("gram", "deltas"), lambda: gram(deltas)), knobs)
    return combine(inputs.base, inputs.terms, [(float(t) / count,)] * count, subtract=deltas.subtract, dtype=dtype)


def ratio(products: Tensor, knobs: Knobs) -> Tensor:
    """t, from inner products [..., K, K]; 0 where the formula has a pole."""
    count, floor = products.shape[-1], FLOOR if knobs.get("variant", "mergekit") == "mergekit" else 0.0
    pairs = [cosine(products, i, j, floor) for i, j in combinations(range(count), 2)]
    mean = torch.stack(pairs).mean(0)
    divisor = 1 + (count - 1) * mean
    pole = divisor.abs() < FLOOR
    t = torch.where(pole, 0.0, count * mean / torch.where(pole, 1.0, divisor))
    return t.clamp(0, 1) if knobs.get("clip", False) else t
