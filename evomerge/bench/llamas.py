"""Llamas on disk to measure merges with: a base and fine-tunes of it, of any size, with random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Shape = Mapping[str, int]
MILLIONS = {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12}  # 220 M parameters
TINY = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
SCALE, MOVED = 0.02, 0.001  # of the base's weights, and of what a fine-tune adds to them


def write_family(folder: Path, shape: Shape, sources: Sequence[str]) -> int:
    """Write a base and fine-tunes of it in bf16, each a directory of its name; the number of parameters."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = tensors_of(shape)
    base = {name: SCALE * torch.randn(size, generator=generator) for name, size in tensors.items()}
    for model in ("base", *sources):
        target = folder / model
        target.mkdir(parents=True)
        step = 0.0 if model == "base" else MOVED
        moved = {name: weight + step * torch.randn(weight.shape, generator=generator) for name, weight in base.items()}
        save_file({name: w.bfloat16() for name, w in moved.items()}, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps(config_of(shape)))
    return sum(map(math.prod, tensors.values()))


def config_of(shape: Shape) -> dict[str, Any]:
    """The config.json of a Llama of this shape, with heads of 64 and no grouped queries."""
    heads = shape["hidden_size"] // 64
    rest = {"num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 2048, "hidden_act": "silu"}
    fixed = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "dtype": "bfloat16"}
    return {**fixed, **rest, **shape, "tie_word_embeddings": False}


def tensors_of(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama of this shape: of each name its shape."""
    width, inner, rows = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
    layer |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    layer |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    ends = {"model.embed_tokens": (rows, width), "model.norm": (width,), "lm_head": (rows, width)}
    layers = {f"model.layers.{i}.{part}": size for i in range(shape["num_hidden_layers"]) for part, size in layer.items()}
    return {f"{name}.weight": size for name, size in {**ends, **layers}.items()}
