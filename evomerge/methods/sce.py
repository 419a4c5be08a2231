"""SCE: select what differs most between the sources, weigh each source by its energy, erase the minority's sign.

FuseChat, Wan et al. 2024 (arXiv:2408.07990):  θ₀ + Σ wₖδₖ / Σ wₖ over what is selected and agrees in sign, wₖ ∝ mean of δₖ².
"""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.masks import Trim
from evomerge.methods.combine import Deltas, Group
from evomerge.methods.inputs import Inputs
from evomerge.methods.knobs import Knobs, one_number
from evomerge.methods.pointwise import pointwise, terms_of
from evomerge.methods.threshold import Magnitudes

FLOOR = 1e-6  # in mergekit energies that add up to less count alike, and no weights that add up to less are divided by


def sce(inputs: Inputs, knobs: Knobs, dtype: torch.dtype) -> Tensor:
    """`select_topk` is the share selected of the elements that differ at all.

    `mergekit` weighs sources alike where their mean squares add up to less than 1e-6, as those of a gentle fine-tune do;
    `paper` weighs them by their energy whatever its size.
    """
    floor = FLOOR if knobs.get("variant", "mergekit") == "mergekit" else 0.0
    chosen = _chosen(inputs, one_number(knobs, "select_topk", 1.0))
    weight = _energies(inputs, chosen, floor)

    def fused(delta: Tensor, piece: slice, _: Group) -> Tensor:
        kept = delta if chosen is None else delta * _selected(delta, chosen, piece)
        total = kept.sum(0)
        agrees = (kept * torch.where(total >= 0, 1.0, -1.0) > 0) * weight.to(delta.dtype)  # [K, n]
        divisor = agrees.sum(0)
        divisor = divisor.clamp(min=floor) if floor else divisor + (divisor == 0)
        return (kept * agrees).sum(0) / divisor

    return pointwise(inputs, fused, dtype)


def _energies(inputs: Inputs, chosen: Trim | None, floor: float) -> Tensor:
    """wₖ, of what is selected: [K, 1] in float64."""
    deltas, energy = terms_of(inputs), torch.zeros(len(inputs.sources), dtype=torch.float64, device=inputs.sources[0].device)
    for piece in deltas.chunks():
        delta = deltas.whole(piece)
        kept = delta if chosen is None else delta * _selected(delta, chosen, piece)
        energy += kept.double().square().sum(1)
    mean = energy / max(deltas.size, 1)
    total = float(mean.sum())
    weight = torch.full_like(mean, 1 / len(mean)) if total < floor or total == 0 else mean / total
    return weight.unsqueeze(1)


def _chosen(inputs: Inputs, share: float) -> Trim | None:
    """What selects a share of the elements that differ between the sources, by how much; None selects all."""
    if share >= 1:
        return None
    spread, differ = inputs.once("spread", lambda: _spread(inputs))
    return spread.largest(int(differ * share))


def _spread(inputs: Inputs) -> tuple[Magnitudes, int]:
    """The deviation between the sources at each element, and at how many there is any."""
    deltas = terms_of(inputs)
    spread = Magnitudes(lambda piece: deviation(deltas.whole(piece)), deltas.size, resident=inputs.resident)
    return spread, _count(deltas)


def _count(deltas: Deltas) -> int:
    return sum(int(deviation(deltas.whole(piece)).count_nonzero()) for piece in deltas.chunks())


def deviation(delta: Tensor) -> Tensor:
    """The standard deviation over the sources, as the float32 by which it is ranked: [n]."""
    delta = delta.double()
    return (delta - delta.mean(0)).square_().mean(0).sqrt_().float()


def _selected(delta: Tensor, chosen: Trim, piece: slice) -> Tensor:
    return chosen.mask(deviation(delta), piece.start).to(delta.dtype)
