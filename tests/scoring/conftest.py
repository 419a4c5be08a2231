"""Tiny real models, a character tokenizer, and lm-eval tasks over JSONL, all made here."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)

CHARACTERS = "\n =" + string.ascii_lowercase + string.digits
VOCABULARY = {token: i for i, token in enumerate(("<pad>", "<bos>", "<eos>", "<unk>", *CHARACTERS))}
CONTEXT = 64  # trained length of the tiny models: long prompts go far beyond it
DOCUMENTS = 24

CHOSEN = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
WRITTEN = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **special)


def make_model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Weights large enough that answers differ from document to document and tokens repeat rarely."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(VOCABULARY), "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, **changes,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20 if "embed" in name or "head" in name else 6)
    return model.eval()


def word(rng: random.Random, short: int = 4, long: int = 8) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(short, long)))


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], template: str) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(template.format(name=name))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """What a scorer takes its tokenizer and architecture from."""
    folder = tmp_path_factory.mktemp("model")
    make_model(0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def module() -> LlamaForCausalLM:
    return make_model(0)


@pytest.fixture(scope="session")
def task_dir(tmp_path_factory: pytest.TempPathFactory, module: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """letter: one-token choices; words: choices that share beginnings; write: text, every other answer the model's own;
    the same behind prefixes of 120 characters, three of them shared."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    shared = [(" ".join(word(rng) for _ in range(40)) + "\n")[:120] for _ in range(3)]
    for suffix, prefixes in (("", [""]), ("_long", shared)):
        prompts = [prefixes[i % len(prefixes)] + f"rank {word(rng)}=" for i in range(DOCUMENTS)]
        letters = [rng.sample(string.ascii_lowercase, 4) for _ in prompts]
        stems = [word(rng, 2, 3) for _ in prompts]
        words = [[stem, stem + "a", stem + word(rng, 1, 4), word(rng)] for stem in stems]
        for name, choices in (("letter", letters), ("words", words)):
            rows = [
                {"prompt": prompt, "choices": list(dict.fromkeys(options)), "gold": i % 3}
                for i, (prompt, options) in enumerate(zip(prompts, choices, strict=True))
            ]
            write_task(folder, name + suffix, rows, CHOSEN)
        answers = [greedy(module, tokenizer, prompt) if i % 2 else word(rng) for i, prompt in enumerate(prompts)]
        rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
        write_task(folder, "write" + suffix, rows, WRITTEN)
    return folder


@torch.no_grad()
def greedy(module: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, limit: int = 12) -> str:
    """Greedy text up to the stop `e`, one plain pass a token."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    while len(ids) < start + limit:
        ids.append(int(module(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in (VOCABULARY["e"], VOCABULARY["<eos>"]):
            break
    text = tokenizer.decode(ids[start:], skip_special_tokens=True)
    return str(text).split("e")[0]
