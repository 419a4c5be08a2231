"""How far a candidate's predictions moved from the base's on fixed prompts: cheap, and needs no labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evomerge.errors import GuardError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    Batch = Tensor | Mapping[str, Tensor]  # input_ids [B, T], or with attention_mask; 0 in the mask is padding


class KL(NamedTuple):
    """KL(base ‖ candidate) in nats over the tokens of the prompts."""

    mean: float
    p95: float


@dataclass(frozen=True)
class Reference:
    """The base's predictions on the prompts, kept in main memory: 4 bytes × tokens × vocabulary."""

    batches: tuple[Batch, ...]
    log_probs: tuple[Tensor, ...]  # of each batch [tokens, vocabulary], padding left out

    @property
    def tokens(self) -> int:
        return sum(len(log_probs) for log_probs in self.log_probs)


def pad(prompts: Sequence[Sequence[int]], batch_size: int = 32, pad_id: int = 0) -> list[dict[str, Tensor]]:
    """Batches of prompts, padded on the right, with their masks."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    batches = []
    for start in range(0, len(prompts), batch_size):
        rows = [torch.tensor(prompt, dtype=torch.long) for prompt in prompts[start : start + batch_size]]
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        batches.append({"input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id), "attention_mask": mask})
    return batches


def reference(model: Module, batches: Sequence[Batch]) -> Reference:
    """Ask the base once; every candidate is then measured against its answers."""
    kept = Reference(tuple(batches), tuple(log_probs.cpu() for log_probs in _predict(model, batches)))
    if not kept.tokens:
        raise GuardError("guard.kl: the prompt set holds no token; give it some prompts")
    return kept


def divergence(model: Module, reference: Reference) -> KL:
    """Mean and 95th percentile over the tokens; a candidate without finite predictions is infinitely far away."""
    import torch

    moved = []
    for base, candidate in zip(reference.log_probs, _predict(model, reference.batches), strict=True):
        log_p = base.to(candidate.device)
        gap = torch.where(log_p > -torch.inf, log_p - candidate, 0.0)  # 0 ln 0 = 0
        moved.append((log_p.exp() * gap).sum(-1).clamp(min=0).cpu().numpy())
    per_token = np.concatenate(moved).astype(np.float64)
    if not np.isfinite(per_token).all():
        return KL(float("inf"), float("inf"))
    return KL(float(per_token.mean()), float(np.quantile(per_token, 0.95)))


def _predict(model: Module, batches: Sequence[Batch]) -> Iterator[Tensor]:
    """Log-probabilities in float32 of the next token at every real token, a batch at a time [tokens, vocabulary]."""
    import torch

    device = next(model.parameters()).device
    with _asking(model), torch.inference_mode():
        for batch in batches:
            inputs = {"input_ids": batch} if isinstance(batch, torch.Tensor) else dict(batch)
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
            yield model(**inputs).logits[real].float().log_softmax(-1)


@contextmanager
def _asking(model: Module) -> Iterator[None]:
    """Without dropout, and as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
