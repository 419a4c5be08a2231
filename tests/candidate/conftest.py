"""A family of tiny real Llamas on disk, and recipes over it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.document import Place
from evomerge.recipe import Recipe

torch.set_num_threads(1)

WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(37))]


def llama(seed: int, tied: bool = False, **changes: Any) -> LlamaForCausalLM:
    """Two layers, grouped-query attention; the seed decides the weights."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    rest = {"num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": tied, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **rest, **changes}))
    with torch.no_grad():  # norms that are not all ones, so that their merging shows
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>").save_pretrained(folder)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, math, code in bfloat16 with their tokenizer; tied-base, tied-math; whole-base, whole-math in float32."""
    root = tmp_path_factory.mktemp("family")
    kinds = {"": (False, torch.bfloat16), "tied-": (True, torch.bfloat16), "whole-": (False, torch.float32)}
    for prefix, (tied, dtype) in kinds.items():
        for seed, name in enumerate(("base", "math", "code")):
            llama(seed, tied).to(dtype).save_pretrained(root / f"{prefix}{name}")
            write_tokenizer(root / f"{prefix}{name}")
    return root


Make = Callable[..., Recipe]


@pytest.fixture
def make(family: Path) -> Make:
    """A recipe over the family: `make(method="linear", weight=0.5)`, or `make(rules=[...], context={...})`."""

    def recipe(*, prefix: str = "", rules: list[dict[str, Any]] | None = None, root: Path = family, **rest: Any) -> Recipe:
        top = {key: rest.pop(key) for key in ("context", "dtype", "seed", "heal") if key in rest}
        data = {
            "base": f"{prefix}base",
            "sources": {"math": f"{prefix}math", "code": f"{prefix}code"},
            "rules": rules or [{"match": "*", **rest}],
            **top,
        }
        return Recipe.from_data(data, Place("test"), root)

    return recipe
