"""A merge as a LoRA: the best approximation of its delta of a chosen rank, tensor by tensor, and how much of it is kept.

B·A is the truncated singular value decomposition (Eckart and Young 1936); both halves take √S. The scale is 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.candidate.checkpoint import FLOATS
from evomerge.candidate.save import refuse_existing, written_whole
from evomerge.candidate.stack import numbered
from evomerge.candidate.stream import Sources, materialize
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

EXACT = 1024  # the shorter side of a matrix up to which the decomposition is exact; randomised beyond


@dataclass(frozen=True)
class Kept:
    """How much of a delta's energy, Σ δ², a LoRA holds: in all, and for the tensor that lost most."""

    rank: int
    tensors: int
    share: float
    least: float
    worst: str
    outside: int  # changed tensors that have no place in a LoRA
    lost: float  # their share

    def __str__(self) -> str:
        rest = f"; {self.outside} tensors have no place in a LoRA, {100 * self.lost:.2f} %" if self.outside else ""
        return (
            f"rank {self.rank}, {self.tensors} tensors: {100 * self.share:.2f} % of the delta's energy kept, least"
            f" {100 * self.least:.2f} % ({self.worst}){rest}"
        )


def merge_to_lora(recipe: Recipe, out: str | Path, rank: int) -> Kept:
    """Write what the recipe adds to its base as a LoRA of a rank, as PEFT reads it.

    The matrices of the layers and an untied head are approximated; norms, embeddings and biases have no place in it. Raises
    RecipeError for a recipe that changes more than weights, CheckpointError where nothing is left or `out` exists.
    """
    if recipe.heal or recipe.context or recipe.tokenizer or recipe.chat_template or recipe.slices:
        raise RecipeError(
            "--lora-rank: a LoRA adds to the base's weights; leave out heal, context, tokenizer, chat_template, slices"
        )
    refuse_existing(target := Path(out).absolute())
    sources = Sources()
    base = sources.checkpoint(recipe.base.location, "base")
    wide = "float64" if any(info.dtype == "F64" for info in base.tensors.values()) else "float32"
    candidate = materialize(replace(recipe, dtype=wide), sources, hashed=False)
    parts: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    energy: dict[str, tuple[float, float]] = {}  # all, kept
    for name, tensor in candidate.weights:
        delta = tensor.double() - sources.read(recipe.base.location, name).double()
        if base.tensors[name].dtype in FLOATS and delta.any():
            energy[name] = float(delta.square().sum()), 0.0
            if _has_place(name, delta):
                up, down = factors(delta, rank)
                energy[name] = energy[name][0], float((up @ down).square().sum())
                module = name.removesuffix(".weight")
                ranks[module] = len(down)
                parts[f"base_model.model.{module}.lora_A.weight"] = down.float()
                parts[f"base_model.model.{module}.lora_B.weight"] = up.float()
    if not parts:
        raise CheckpointError(f"{target}: nothing to write: the recipe changes no matrix of {base.path}")
    _write(target, parts, ranks, rank, recipe.base.model)
    return _kept(energy, ranks, rank)


def _has_place(name: str, delta: Tensor) -> bool:
    return delta.dim() == 2 and name.endswith(".weight") and (numbered(name) is not None or name.endswith("lm_head.weight"))


def factors(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [out, r] and A [r, in] of the best approximation; r is the rank, or what the matrix has."""
    import torch

    short = min(delta.shape)
    if short <= EXACT or 2 * rank >= short:
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(delta, q=min(short, rank + 16), niter=6)
        vt = v.T
    r = max(1, min(rank, int((s > s[0] * 1e-12).sum())))
    root = s[:r].sqrt()
    return (u[:, :r] * root).contiguous(), (root[:, None] * vt[:r]).contiguous()


def _write(target: Path, parts: Mapping[str, Tensor], ranks: Mapping[str, int], rank: int, model: str) -> None:
    from safetensors.torch import save_file

    fewer = {module: r for module, r in ranks.items() if r != rank}
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": model, "r": rank, "lora_alpha": rank,
        "rank_pattern": fewer, "alpha_pattern": fewer, "target_modules": sorted(ranks), "bias": "none", "lora_dropout": 0.0,
        "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    with written_whole(target) as folder:
        save_file(dict(parts), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _kept(energy: Mapping[str, tuple[float, float]], ranks: Mapping[str, int], rank: int) -> Kept:
    total = sum(whole for whole, _ in energy.values())
    inside = {name: kept / whole for name, (whole, kept) in energy.items() if name.removesuffix(".weight") in ranks}
    worst = min(inside, key=lambda name: inside[name])
    lost = sum(whole for name, (whole, _) in energy.items() if name not in inside) / total
    share = sum(kept for _, kept in energy.values()) / total
    return Kept(rank, len(ranks), share, inside[worst], worst, len(energy) - len(inside), lost)
