"""A merged model learns from its parents: forward KL to a mixture of them on plain texts, in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from evomerge.errors import CheckpointError, HealingError
from evomerge.healing.losses import forward_kl
from evomerge.healing.mixture import Teacher, mixture
from evomerge.recipe import Heal

BATCH = 4  # rows a step
WARM_UP = 0.1  # share of the steps in which the learning rate rises
CLIP = 1.0  # norm of the gradient


def heal(module: nn.Module, settings: Heal, teachers: Mapping[str, Teacher], rows: Tensor) -> list[float]:
    """Train the live module in place on the first `rows` that hold `settings.tokens`; gives the loss before every step.

    A pure function of its arguments on one thread. What is trained is float32, whatever the module is; to see what will be
    written, take it with `live.snapshot`, which rounds, and load that.
    """
    batches = _batches(rows, settings.tokens)
    losses: list[float] = []
    with _trainable(module) as parameters:
        optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        for step, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = settings.learning_rate * _pace(step, len(batches))
            loss = _loss(module, settings, teachers, batch.to(parameters[0].device))
            torch.autograd.backward(loss)
            norm = nn.utils.clip_grad_norm_(parameters, CLIP)
            losses.append(loss.item())
            if not math.isfinite(losses[-1] + norm.item()):
                where = f"step {step + 1} of {len(batches)}"
                raise HealingError(f"heal: {where} is not finite; lower `learning_rate` ({settings.learning_rate:g})")
            optimizer.step()
            optimizer.zero_grad()
    return losses


def _loss(module: nn.Module, settings: Heal, teachers: Mapping[str, Teacher], rows: Tensor) -> Tensor:
    """Mean forward KL a token, times T² so that gradients keep their size at every temperature (Hinton et al. 2015)."""
    temperature = settings.temperature
    said = mixture(teachers, settings.teachers, rows, temperature, settings.mixture)
    logits = module(input_ids=rows, use_cache=False).logits.float()  # [rows, length, vocabulary]
    if logits.shape != said.shape:
        known = f"a teacher knows {said.shape[-1]} tokens and the merged model {logits.shape[-1]}"
        raise CheckpointError(f"heal: {known}; teach with models of one vocabulary")
    return forward_kl((logits / temperature).log_softmax(-1), said).mean() * temperature**2


def _batches(rows: Tensor, tokens: int) -> Sequence[Tensor]:
    needed = math.ceil(tokens / rows.shape[1])
    if needed > len(rows):
        raise ValueError(f"{tokens} tokens need {needed} rows of {rows.shape[1]}, here are {len(rows)}")
    return torch.split(rows[:needed], BATCH)


def _pace(step: int, steps: int) -> float:
    """Up to 1 within the warm-up, then straight down to 0 after the last step."""
    warm = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm, (steps - step) / (steps - warm + 1))


@contextmanager
def _trainable(module: nn.Module) -> Iterator[list[nn.Parameter]]:
    """All parameters in float32 with gradients; afterwards as they were, trained."""
    parameters = list(module.parameters())
    before = [(parameter.dtype, parameter.requires_grad) for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield parameters
    finally:
        for parameter, (dtype, trained) in zip(parameters, before, strict=True):
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(trained)
