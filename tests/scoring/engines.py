"""Tiny models that vLLM runs, prompts for them, and what transformers and a plain vLLM say of them."""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge import rope
from evomerge.candidate import live
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.stream import Candidate
from evomerge.recipe import Context
from evomerge.scoring import vllm_start
from evomerge.scoring.vllm_engine import Engine

if importlib.util.find_spec("vllm") is None:  # whoever imports this file is skipped with it
    pytest.skip("vLLM is not installed here; `make test-vllm` runs these tests", allow_module_level=True)

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = {token: i for i, token in enumerate(("<pad>", "<bos>", "<eos>", "<unk>", *CHARACTERS))}
CHAT = "{% for m in messages %}{{ '0' if m.role == 'user' else '1' }} {{ m.content }}\n{% endfor %}"
CONTEXT = 256
LETTERS = range(6, len(VOCABULARY))


def build(folder: Path, seed: int, *, tied: bool, layers: int = 3) -> Path:
    """A tiny Llama with weights large enough that candidates disagree."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=CONTEXT, tie_word_embeddings=tied, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(8 if "embed" in name or "head" in name else 4)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    whole.chat_template = CHAT
    whole.save_pretrained(folder)
    return folder


def candidate(folder: Path, context: Context | None = None) -> Candidate:
    checkpoint = Checkpoint.open(folder)
    config = rope.extend(checkpoint.config, context) if context else checkpoint.config
    weights = {name: checkpoint.read(name) for name in checkpoint.tensors}
    return Candidate.of(config, weights, f"{folder.name} {context}")


def texts(count: int, low: int, high: int) -> list[list[int]]:
    """Random prompts behind one common beginning of 140 tokens: longer than a block of the prefix cache."""
    draw = random.Random(0)
    common = [draw.choice(LETTERS) for _ in range(140)]
    return [common + [draw.choice(LETTERS) for _ in range(draw.randint(low, high))] for _ in range(count)]


PROMPTS = texts(6, 10, 80)
LONG = texts(3, 500, 700)
GREEDY = {"max_tokens": 12, "ignore_eos": True}


def spoken(engine: Engine) -> tuple[list[list[float]], list[list[int]]]:
    return heard(engine, PROMPTS), engine.write(PROMPTS, [GREEDY] * len(PROMPTS))


def heard(engine: Engine, prompts: list[list[int]]) -> list[list[float]]:
    return [reading.logs for reading in engine.read(prompts, [len(prompt) - 1 for prompt in prompts])]


def of_transformers(candidate: Candidate, prompts: list[list[int]]) -> list[list[float]]:
    module = live.module(candidate.config)
    live.load(candidate, module)
    with torch.no_grad():
        logs = [torch.log_softmax(module(torch.tensor([prompt])).logits[0].double(), -1) for prompt in prompts]
    return [
        log[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist() for log, prompt in zip(logs, prompts, strict=True)
    ]


def furthest(ours: list[list[float]], theirs: list[list[float]]) -> float:
    return max(abs(a - b) for left, right in zip(ours, theirs, strict=True) for a, b in zip(left, right, strict=True))


def said_by_vllm(folder: Path) -> tuple[list[list[float]], list[list[int]]]:
    """What vLLM itself says of a model on disk, in an engine of its own and without any of our code; see `spoken`."""
    for name, value in vllm_start.SETTINGS.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    if Engine._alive is not None:  # the end of the plain one would be its end too
        Engine._alive.close()
    with vllm_start.undisturbed():
        llm = LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=CONTEXT, kv_cache_memory_bytes=1 << 26)
        asked = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        read = llm.generate(asked, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0), use_tqdm=False)
        wrote = llm.generate(asked, SamplingParams(temperature=0, **GREEDY), use_tqdm=False)
        logs = [[p[t].logprob for p, t in zip(o.prompt_logprobs[1:], o.prompt_token_ids[1:], strict=True)] for o in read]
        answers = [list(output.outputs[0].token_ids) for output in wrote]
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
    return logs, answers
