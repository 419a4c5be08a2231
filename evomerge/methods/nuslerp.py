"""SLERP between two models or two deltas by their weights: of whole tensors, of rows or of columns. Goddard 2024, NuSLERP.

Where slerp takes the line from |cos ω| = 0.9995 on, this stays on the arc until two vectors are parallel in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.methods.combine import Deltas, combine
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs, Rows, per_source, sums
from evomerge.methods.sphere import between_of
from evomerge.methods.vectors import cosine, gram, gram_of_columns, gram_of_rows, mix, mix_rows

BALANCED = 1e-6  # weights whose sum is smaller count alike
PARALLEL = 1e-16  # of 1 - cos²


def nuslerp(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """From the first source to the second, as far as the second's share of the weights; `along` says what one vector is."""
    deltas, along = between_of(inputs, knobs), knobs.get("along", "tensor")
    second = _second(per_source(inputs, knobs["weight"]))
    if along == "tensor":
        return _whole(inputs, deltas, second, knobs, dtype)
    return _parts(inputs, deltas, second, knobs, dtype)


def _second(weight: list[Rows]) -> Tensor:
    """The second source's share for each group of rows."""
    totals = [total for total, _ in sums(weight)]
    rows = [weight[1][g * len(weight[1]) // len(totals)] for g in range(len(totals))]
    return torch.tensor([0.5 if abs(s) < BALANCED else w / s for w, s in zip(rows, totals, strict=True)], dtype=torch.float64)


def _whole(inputs: Inputs, deltas: Deltas, t: Tensor, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    products = inputs.once(("gram", knobs.get("between", "models")), lambda: gram(deltas))
    weight = [part.tolist() for part in coefficients(cosine(products).cpu(), t)]
    base, terms = (None, inputs.sources) if deltas.base is None else (inputs.base, inputs.terms)
    return combine(base, terms, weight, subtract=deltas.subtract, dtype=dtype)


def _parts(inputs: Inputs, deltas: Deltas, t: Tensor, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    shape, along = inputs.sources[0].shape, knobs["along"]
    width = max(1, (shape[-1] if along == "rows" else shape[1:].numel() if len(shape) > 1 else 1) if shape else 1)
    if len(shape) == 1:  # one vector either way
        along, width = "rows", max(1, shape[0])
    products = gram_of_rows if along == "rows" else gram_of_columns
    found = inputs.once((along, knobs.get("between", "models")), lambda: cosine(products(deltas, width)))
    at = t.to(found.device).repeat_interleave(-(-(deltas.size // width) // len(t)))  # [R]

    if along == "rows":
        return mix_rows(deltas, width, torch.stack([*coefficients(found, at)], 1), shape, dtype)

    def of(rows: slice) -> Sequence[Tensor]:
        return coefficients(found, at[rows, None])

    return mix(deltas, width, of, shape, dtype)


def coefficients(cos: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """What each end is multiplied by."""
    parallel = 1 - cos.square() <= PARALLEL
    omega = torch.where(parallel, 0.0, cos).acos()
    left, right = ((part * omega).sin() / omega.sin() for part in (1 - t, t))
    return torch.where(parallel, 1 - t, left), torch.where(parallel, t, right)
