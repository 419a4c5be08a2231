"""The one shape all models of the zoo have: a Llama of 1.1 million parameters, small and yet like the large ones."""

from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from . import tokenizer

CONTEXT = 256  # more than 201, below which YaRN would treat all 16 frequencies of a head of 32 alike


def config(tied: bool) -> LlamaConfig:
    """Six layers, so that a curve over depth means something; heads of 32, the least vLLM runs on a CPU."""
    return LlamaConfig(
        vocab_size=len(tokenizer.VOCABULARY),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.PAD,
        bos_token_id=tokenizer.BOS,
        eos_token_id=tokenizer.EOS,
        attn_implementation="sdpa",
    )


def fresh(tied: bool) -> LlamaForCausalLM:
    """A model that knows nothing; torch's seed decides its weights.

    Embeddings twenty times as large as usual bring the first skills after two thirds of the tokens.
    """
    model = LlamaForCausalLM(config(tied))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1 if tied else 20)
    return model


def save(model: LlamaForCausalLM, place: Path) -> None:
    """The weights in bfloat16, with all that `AutoModelForCausalLM` and `AutoTokenizer` ask for."""
    rounded = LlamaForCausalLM(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=tokenizer.PAD, bos_token_id=tokenizer.BOS, eos_token_id=tokenizer.EOS
    )
    rounded.save_pretrained(place)
    tokenizer.build(CONTEXT).save_pretrained(place)
