"""The table of methods: each a short function with its paper, over the inputs of one output tensor.

Knobs come resolved at the depth of the tensor. One that is per source is a sequence in the order of the sources, or a
mapping by their names. Where a number stands there may be a tuple: one number for each of equal groups of rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from evomerge.masks import Ballot, Bands, Drops, Keep, Ranked
from evomerge.methods.arcee_fusion import arcee_fusion
from evomerge.methods.combine import balance, combine
from evomerge.methods.della import magprune
from evomerge.methods.fedavg import fedavg
from evomerge.methods.fisher import fisher
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs, Rows, no_average, ordered, per_source, rows, sums, whole_numbers
from evomerge.methods.model_stock import model_stock
from evomerge.methods.nearswap import nearswap
from evomerge.methods.nuslerp import nuslerp
from evomerge.methods.ram import ram, ramplus_tl
from evomerge.methods.regmean import regmean
from evomerge.methods.sce import sce
from evomerge.methods.slerp import PARALLEL, STRAIGHT, cosine_of
from evomerge.methods.slerp import slerp as interpolate
from evomerge.methods.spectra import iso_c, tsvm
from evomerge.methods.sphere import karcher, multislerp

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
        scale = [1 / total if total else no_average(inputs) for total, _ in sums(weight)]
    return combine(None, inputs.sources, weight, scale=scale, subtract=False, dtype=dtype)


def task_arithmetic(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """θ₀ + λ Σ wₖ δₖ. Ilharco et al. 2023 (arXiv:2212.04089)."""
    return _added(inputs, knobs, None, dtype)


def slerp(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """From the base at t = 0 to the source at t = 1 along an arc. Shoemake 1985.

    `mergekit` takes the line instead of the arc where |cos ω| > 0.9995, as it is for most fine-tunes, and no angle of vectors
    shorter than 1e-8; `paper` does neither.
    """
    base, source, t = inputs.base, inputs.sources[0], rows(knobs["t"])
    assert base is not None
    if knobs.get("variant", "mergekit") == "mergekit":
        return interpolate(base, source, t, cosine=inputs.cosine, straight=STRAIGHT, dtype=dtype)
    cosine = inputs.once("cosine of the paper", lambda: cosine_of(base, source, 0.0))
    return interpolate(base, source, t, cosine=cosine, straight=PARALLEL, dtype=dtype)


def ties(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """θ₀ + λ · mean of what is large and agrees in sign. Yadav et al. 2023 (arXiv:2306.01708).

    `paper` trims over the whole model, which one tensor does not know: the knob `threshold` holds a Trim for each source.
    """
    if knobs.get("variant", "mergekit") == "paper":
        trims = tuple(ordered(inputs, knobs["threshold"]))
    else:
        trims = tuple(inputs.trims(whole_numbers(inputs, knobs, "density")))
    keep = inputs.rescaled(Bands.below(trims)) if knobs.get("rescale", False) else trims
    return _elected(inputs, {"normalize": True, **knobs}, keep, dtype)


def dare_linear(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """θ₀ + λ Σ wₖ mₖ δₖ/(1-pₖ), mₖ dropping a share pₖ at random. DARE, Yu et al. 2024 (arXiv:2311.03099)."""
    return _added(inputs, knobs, _drops(inputs, knobs), dtype)


def dare_ties(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """DARE's drop in the place of TIES' trim, then TIES' election. Yu et al. 2024 (arXiv:2311.03099)."""
    return _elected(inputs, {"normalize": False, **knobs}, _drops(inputs, knobs), dtype)


def della(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """A drop that spares the large deltas of each row, then TIES' election. Deep et al. 2024 (arXiv:2406.11617).

    `paper` divides each survivor by its own chance to stay, `mergekit` scales all of a source's to their old L1 norm.
    """
    return _elected(inputs, {"normalize": True, **knobs}, _ranked(inputs, knobs), dtype)


def della_linear(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """DELLA's drop without an election: a sum, as in DARE. Deep et al. 2024 (arXiv:2406.11617)."""
    return _added(inputs, knobs, _ranked(inputs, knobs), dtype)


def breadcrumbs(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """θ₀ + λ Σ wₖ δₖ without what is small and without outliers. Davari and Belilovsky 2023 (arXiv:2312.06795)."""
    return _added(inputs, knobs, _bands(inputs, knobs), dtype)


def breadcrumbs_ties(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """Breadcrumbs' mask in the place of TIES' trim, then TIES' election. `variant` is the election's."""
    return _elected(inputs, {"normalize": False, **knobs}, _bands(inputs, knobs), dtype)


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
    "della": della,
    "della_linear": della_linear,
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "model_stock": model_stock,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "sce": sce,
    "nearswap": nearswap,
    "arcee_fusion": arcee_fusion,
    "ram": ram,
    "ramplus_tl": ramplus_tl,
    "tsvm": tsvm,
    "iso_c": iso_c,
    "fedavg": fedavg,
    "fisher": fisher,
    "regmean": regmean,
    "passthrough": passthrough,
}


def _added(inputs: Inputs, knobs: Knobs, keep: Keep, dtype: torch.dtype) -> Tensor:
    weight, scale = per_source(inputs, knobs["weight"]), rows(knobs.get("lambda", 1.0))
    if knobs.get("normalize", False):
        scale = tuple(s / (total if abs(total) >= TINY_SUM else 1.0) for total, s in sums(weight, scale))
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
    return inputs.drops(whole_numbers(inputs, knobs, "drop_rate"), rescale)


def _ranked(inputs: Inputs, knobs: Knobs) -> Ranked:
    density = whole_numbers(inputs, knobs, "density")
    epsilon = whole_numbers(inputs, {"epsilon": 0.15, **knobs}, "epsilon")
    rescale = knobs.get("variant", "mergekit") if knobs.get("rescale", True) else None
    ranked = magprune(inputs, density, epsilon, rescale=rescale == "paper")
    return inputs.rescaled(ranked) if rescale == "mergekit" else ranked


def _bands(inputs: Inputs, knobs: Knobs) -> Bands:
    density = whole_numbers(inputs, knobs, "density")
    bands = inputs.bands(density, whole_numbers(inputs, {"gamma": 0.01, **knobs}, "gamma"))
    return inputs.rescaled(bands) if knobs.get("rescale", False) else bands
