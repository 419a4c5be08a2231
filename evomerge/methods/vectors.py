"""The models behind one output tensor as vectors: their inner products, and sums with coefficients found from those.

What a method of angles needs of K models is their K × K inner products, summed in float64 in one pass; whatever it iterates
then takes no time, and a second pass adds the models up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from evomerge import kernels
from evomerge.methods import combine

Coefficients = Callable[[slice], Sequence[Tensor]]  # of some rows, for each model: [r, 1] or [r, C]


def gram(deltas: combine.Deltas) -> Tensor:
    """⟨δᵢ, δⱼ⟩ of whole tensors, [K, K] in float64."""
    if fused := _twin("gram", deltas):
        return cast(Tensor, fused(deltas.base, deltas.sources, subtract=deltas.subtract))
    products = torch.zeros(deltas.count, deltas.count, dtype=torch.float64, device=deltas.device)
    for piece in deltas.chunks():
        delta = deltas.whole(piece).double()
        products += delta @ delta.T if deltas.count > 1 else kernels.row_sums(delta.square())
    return products


def gram_of_rows(deltas: combine.Deltas, width: int) -> Tensor:
    """⟨δᵢ, δⱼ⟩ of each row of `width` elements, [R, K, K]."""
    if fused := _twin("gram_of_rows", deltas):
        return cast(Tensor, fused(deltas.base, deltas.sources, width, subtract=deltas.subtract))
    found = [torch.zeros(0, deltas.count, deltas.count, dtype=torch.float64, device=deltas.device)]
    for rows in blocks(deltas, width):
        delta = _rows(deltas, rows, width).double().transpose(0, 1)  # [r, K, C]
        found.append(delta @ delta.transpose(1, 2))
    return torch.cat(found)


def _twin(name: str, deltas: combine.Deltas) -> Callable[..., Any] | None:
    """Of float32 deltas only: of wide ones the last bits of a sum, which are those of its order, would be seen in the result."""
    return None if deltas.dtype == torch.float64 else kernels.twin(name, deltas.base, [*deltas.sources])


def gram_of_columns(deltas: combine.Deltas, width: int) -> Tensor:
    """⟨δᵢ, δⱼ⟩ of each of `width` columns, [C, K, K]."""
    products = torch.zeros(width, deltas.count, deltas.count, dtype=torch.float64, device=deltas.device)
    for rows in blocks(deltas, width):
        delta = _rows(deltas, rows, width).double().permute(2, 0, 1)  # [C, K, r]
        products += delta @ delta.transpose(1, 2)
    return products


def mix(deltas: combine.Deltas, width: int, coefficients: Coefficients, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """base + Σ coefficientₖ · δₖ, with coefficients that differ from row to row, or from element to element."""
    merged = kernels.result(shape, dtype, deltas.device)
    table = merged.view(-1, width)
    for rows in blocks(deltas, width):
        terms = [c.to(deltas.dtype) * d for c, d in zip(coefficients(rows), _rows(deltas, rows, width), strict=True)]
        total = sum(terms[1:], start=terms[0])
        table[rows] = total if deltas.base is None else total + deltas.base.view(-1, width)[rows]
    return merged


def mix_rows(deltas: combine.Deltas, width: int, coefficients: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """base + Σ coefficientₖ · δₖ, with coefficients [R, K] that differ from row to row of `width` elements."""
    if fused := kernels.twin("mix_rows", deltas.base, [*deltas.sources], None, dtype):
        merged: Tensor = fused(deltas.base, deltas.sources, coefficients, subtract=deltas.subtract, dtype=dtype)
        return merged.view(shape)
    return mix(deltas, width, lambda rows: coefficients[rows].unsqueeze(-1).unbind(1), shape, dtype)


def cosine(products: Tensor, i: int = 0, j: int = 1, floor: float = 0.0) -> Tensor:
    """cos of the angle between two of them, 0 where one has no length; `floor` is the least product of lengths to divide by."""
    lengths = products[..., i, i].sqrt() * products[..., j, j].sqrt()
    lengths = lengths.clamp(min=floor) if floor else torch.where(lengths > 0, lengths, 1.0)
    return (products[..., i, j] / lengths).clamp(-1, 1)


def blocks(deltas: combine.Deltas, width: int) -> Iterator[slice]:
    """Rows of a tensor, as many at a time as make up a chunk."""
    step = max(combine.CHUNK // deltas.count // width, 1)
    for start in range(0, deltas.size // width, step):
        yield slice(start, min(start + step, deltas.size // width))


def _rows(deltas: combine.Deltas, rows: slice, width: int) -> Tensor:
    return deltas.whole(slice(rows.start * width, rows.stop * width)).view(deltas.count, -1, width)  # [K, r, C]
