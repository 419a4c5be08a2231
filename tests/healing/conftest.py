"""A tiny Llama as student, teacher and stranger; real, and small enough to be trained in a second."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH = 16


@pytest.fixture(autouse=True)
def one_thread():
    """Bits are only promised on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def llama() -> Callable[..., LlamaForCausalLM]:
    """`llama(seed)`: the same weights for the same seed, far enough from uniform to have something to teach."""

    def build(seed: int, vocabulary: int = 20, tied: bool = False) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.2,
            tie_word_embeddings=tied,
        )
        return LlamaForCausalLM(config).eval()

    return build


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randint(0, 20, (64, LENGTH), generator=torch.Generator().manual_seed(0))
