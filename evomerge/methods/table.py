"""The table of methods: each a short function with its paper, over the inputs of one output tensor.

Knobs come resolved at the depth of the tensor. One that is per source is a sequence in the order of the sources, or a
mapping by their names. Where a number stands there may be a tuple: one number for each of equal groups of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import RecipeError
from evomerge.masks import Ballot, Drops, Keep
from evomerge.methods.combine import balance, combine, groups
from evomerge.methods.inputs import Inputs
from evomerge.methods.slerp import slerp as interpolate

Knobs = Mapping[str, Any]
Rows = tuple[float, ...]  # [G], one number for each group of rows
Method = Callable[[Inputs, Knobs, torch.dtype], Tensor]

TINY_SUM = 1e-8  # weights of deltas whose sum is smaller are not divided by it


def merge_tensor(method: str, inputs: Inputs, knobs: Knobs, dtype: torch.dtype | None = None) -> Tensor:
    """One output tensor: float32 inside (float64 where an input is), rounded once to `dtype`, or to the first input's."""
    first = inputs.sources[0] if inputs.base is None else inputs.base
    return METHODS[method](inputs, knobs, dtype or first.dtype)


def linear(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """Σ wₖ θₖ / Σ wₖ: an average of models. Model soups, Wortsman et al. 2022 (arXiv:2203.05482)."""
    weight, scale = per_source(inputs, knobs["weight"]), [1.0]
    if knobs.get("normalize", True):
        scale = [1 / total if total else _no_average(inputs) for total, _ in _sums(weight)]
    return combine(None, inputs.sources, weight, scale=scale, subtract=False, dtype=dtype)


def task_arithmetic(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """θ₀ + λ Σ wₖ δₖ. Ilharco et al. 2023 (arXiv:2212.04089)."""
    return _added(inputs, knobs, None, dtype)


def slerp(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """From the base at t = 0 to the source at t = 1 along an arc. Shoemake 1985."""
    assert inputs.base is not None
    return interpolate(inputs.base, inputs.sources[0], rows(knobs["t"]), cosine=inputs.cosine, dtype=dtype)


def ties(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """θ₀ + λ · mean of what is large and agrees in sign. Yadav et al. 2023 (arXiv:2306.01708).

    `paper` trims over the whole model, which one tensor does not know: the knob `threshold` holds a Trim for each source.
    """
    if knobs.get("variant", "mergekit") == "paper":
        keep = _ordered(inputs, knobs["threshold"])
    else:
        keep = inputs.trims(_numbers(inputs, knobs, "density"))
    return _elected(inputs, {"normalize": True, **knobs}, keep, dtype)


def dare_linear(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """θ₀ + λ Σ wₖ mₖ δₖ/(1-pₖ), mₖ dropping a share pₖ at random. DARE, Yu et al. 2024 (arXiv:2311.03099)."""
    return _added(inputs, knobs, _drops(inputs, knobs), dtype)


def dare_ties(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """DARE's drop in the place of TIES' trim, then TIES' election. Yu et al. 2024 (arXiv:2311.03099)."""
    return _elected(inputs, {"normalize": False, **knobs}, _drops(inputs, knobs), dtype)


def passthrough(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """scale · θ: the tensor of one model."""
    source, scale = inputs.sources[0], rows(knobs.get("scale", 1.0))
    if set(scale) == {1.0}:
        return source.to(dtype if source.is_floating_point() else source.dtype, copy=True)
    return combine(None, [source], [scale], subtract=False, dtype=dtype)


METHODS: dict[str, Method] = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "slerp": slerp,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "passthrough": passthrough,
}


def _added(inputs: Inputs, knobs: Knobs, keep: Keep, dtype: torch.dtype) -> Tensor:
    weight, scale = per_source(inputs, knobs["weight"]), rows(knobs.get("lambda", 1.0))
    if knobs.get("normalize", False):
        scale = tuple(s / (total if abs(total) >= TINY_SUM else 1.0) for total, s in _sums(weight, scale))
    return _combined(inputs, weight, keep=keep, scale=scale, dtype=dtype)


def _elected(inputs: Inputs, knobs: Knobs, keep: Keep, dtype: torch.dtype) -> Tensor:
    weight, scale = per_source(inputs, knobs.get("weight", 1.0)), rows(knobs.get("lambda", 1.0))
    return _combined(inputs, weight, keep=keep, scale=scale, ballot=_ballot(inputs, knobs, keep), dtype=dtype)


def _combined(
    inputs: Inputs, weight: list[Rows], *, keep: Keep, scale: Rows, ballot: Ballot | None = None, dtype: torch.dtype
) -> Tensor:
    subtract = not inputs.prepared
    return combine(inputs.base, inputs.terms, weight, keep=keep, ballot=ballot, scale=scale, subtract=subtract, dtype=dtype)


def _ballot(inputs: Inputs, knobs: Knobs, keep: Keep) -> Ballot:
    """mergekit weighs the votes and takes a tie for +; the paper does not, and gives a tie to the majority of all signs.

    Here the majority is the tensor's, not the whole model's: only votes that cancel exactly ask for it.
    """
    if knobs.get("variant", "mergekit") == "mergekit":
        return Ballot(True, knobs["normalize"])
    majority = balance(inputs.base, inputs.terms, keep, subtract=not inputs.prepared)
    return Ballot(False, knobs["normalize"], tie=1 if majority >= 0 else -1)


def _drops(inputs: Inputs, knobs: Knobs) -> Drops:
    rescale = knobs.get("variant", "mergekit") if knobs.get("rescale", True) else None
    return inputs.drops(_numbers(inputs, knobs, "drop_rate"), rescale)


def per_source(inputs: Inputs, knob: Any) -> list[Rows]:
    """A knob's numbers for each source; a single number is everybody's."""
    return [rows(value) for value in _ordered(inputs, knob)]


def _ordered(inputs: Inputs, knob: Any) -> Sequence[Any]:
    names = inputs.place.sources
    if isinstance(knob, Mapping):
        return [knob[name] for name in names]
    return knob if isinstance(knob, (list, tuple)) else [knob] * len(names)


def rows(value: Any) -> Rows:
    return tuple(float(v) for v in value) if isinstance(value, (list, tuple)) else (float(value),)


def _numbers(inputs: Inputs, knobs: Knobs, name: str) -> list[float]:
    """A knob that has one number for each source's whole tensor."""
    values = per_source(inputs, knobs[name])
    for value in values:
        if len(value) > 1:
            raise RecipeError(f"{name}: {len(value)} row groups, but it is one number for a tensor; give rows to the weight")
    return [value[0] for value in values]


def _sums(weight: list[Rows], scale: Rows = (1.0,)) -> list[tuple[float, float]]:
    """Σ wₖ of each group of rows, and its scale."""
    return [(math.fsum(group.weight), group.scale) for _, group in groups(0, weight, scale)]


def _no_average(inputs: Inputs) -> float:
    raise RecipeError(f"linear: the weights of {inputs.place.tensor} add up to 0; raise one, or set normalize: false")
