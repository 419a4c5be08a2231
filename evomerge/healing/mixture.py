"""What several teachers say together: p_T = Σ wᵢ·pᵢ, each remembering its answers for the next candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

MEMORY = 256 << 20  # bytes of logits that one teacher keeps


class Teacher:
    """A frozen model that keeps what it said: every candidate of a search asks it about the same rows.

    When `memory` bytes are full, later rows are computed each time; throwing out the oldest instead would, in a cycle
    over the rows, find nothing at all.
    """

    def __init__(self, model: nn.Module, memory: int = MEMORY) -> None:
        self.model = model.eval()
        self.free = memory
        self.said: dict[tuple[torch.Size, bytes], Tensor] = {}

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Tensor:
        """[rows, length] -> [rows, length, vocabulary] in float32; the same rows together give the same bits."""
        key = rows.shape, rows.cpu().numpy().tobytes()
        if key in self.said:
            return self.said[key]
        logits: Tensor = self.model(input_ids=rows, use_cache=False).logits.float()
        if (size := logits.nbytes) <= self.free:
            self.free -= size
            self.said[key] = logits
        return logits


def mixture(
    teachers: Mapping[str, Teacher],
    shares: Mapping[str, float],
    rows: Tensor,
    temperature: float,
    kind: str = "shares",
) -> Tensor:
    """log Σ wᵢ·pᵢ at this temperature, with Σ wᵢ = 1; a teacher without a share is not asked.

    `shares`: wᵢ is the share, everywhere. `likelihood`: wᵢ is the share times what teacher i gave (at temperature 1) to the
    token that follows in the text, so that whoever knows the text speaks; at the last token of a row, the share again.
    """
    weights, said = [], []
    for name, share in shares.items():
        if share:
            logits = teachers[name].logits(rows)
            weights.append(_weight(share, logits, rows, kind))
            said.append((logits / temperature).log_softmax(-1))
    if not said:
        raise ValueError("a mixture needs a teacher with a share above 0")
    log_weights = torch.stack(weights).log_softmax(0)  # [teachers, rows, length]
    return torch.logsumexp(torch.stack(said) + log_weights[..., None], 0)


def _weight(share: float, logits: Tensor, rows: Tensor, kind: str) -> Tensor:
    """The logarithm of a weight for each token, up to what all teachers have in common."""
    weight = logits.new_full(rows.shape, math.log(share))
    if kind == "likelihood":
        heard = logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None]).squeeze(-1)
        weight[:, :-1] += heard
    return weight
