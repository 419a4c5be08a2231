"""How vLLM is started for candidates: its settings, the architecture without weights, and what starting it would disturb."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Read by vLLM when it is imported: the engine in this process, nothing sent anywhere, errors only on the terminal.
SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
# Several ranks are processes of their own: started afresh, and on a CPU not each on a memory node of its own.
OF_RANKS = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
NO_COMPILER = "TORCH_COMPILE_DISABLE"
WORKER = "evomerge.scoring.vllm_worker.CandidateWorker"
EXCHANGED = ("default", "linear", "yarn")  # rope types that change within a live engine
CACHE = 128 << 20  # bytes for keys and values on a CPU, or more where two prompts of full length need it


def start(
    folder: Path, config: PretrainedConfig, length: int, tokenizer: str, dtype: str, options: Mapping[str, Any]
) -> tuple[bool, Any]:
    """vLLM's own object, and whether it takes weights by its weight transfer."""
    for name, value in {**SETTINGS, **OF_RANKS}.items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm.platforms import current_platform

    from evomerge.scoring.vllm_worker import BACKEND, register_transfer

    (folder / "config.json").write_text(json.dumps(_described(config, length)), encoding="utf-8")
    arguments: dict[str, Any] = {"max_num_seqs": 64, "seed": 0}
    if current_platform.is_cpu():
        arguments["kv_cache_memory_bytes"] = max(CACHE, 2 * length * _bytes_per_token(config, dtype))
    if transfers := register_transfer():
        arguments["weight_transfer_config"] = {"backend": BACKEND}
    llm = LLM(
        model=str(folder),
        tokenizer=tokenizer,
        dtype=dtype,
        load_format="dummy",  # all weights come from candidates
        generation_config="vllm",
        enforce_eager=True,  # a captured graph would keep the rotary tables it was captured with
        worker_extension_cls=WORKER,
        **{**arguments, **options, "max_model_len": length},
    )
    llm.collective_rpc("make_room")
    return transfers, llm


def _described(config: PretrainedConfig, length: int) -> dict[str, Any]:
    """config.json of the engine: its context not extended yet, and long enough for every candidate."""
    data = json.loads(config.to_json_string(use_diff=False))
    rope = rope_parameters(config)
    if rope is None or not exchangeable(rope):
        return dict(data)
    plain = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    positions = max(length, config.max_position_embeddings)
    return {**data, "rope_parameters": {**plain, "rope_type": "default"}, "max_position_embeddings": positions}


def rope_parameters(config: PretrainedConfig) -> dict[str, Any] | None:
    """How the model turns its queries and keys; None for a model that does not."""
    found = getattr(config, "rope_parameters", None)
    if not found:
        return None
    original = {"original_max_position_embeddings": config.max_position_embeddings} if found.get("rope_type") == "yarn" else {}
    return {**original, **found}


def exchangeable(rope: Mapping[str, Any] | None) -> bool:
    return rope is None or rope.get("rope_type") in EXCHANGED


def _bytes_per_token(config: PretrainedConfig, dtype: str) -> int:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * getattr(torch, dtype).itemsize)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """On a CPU, vLLM compiles two small functions with a C++ compiler, which costs up to a minute and may not be there."""
    if torch.cuda.is_available():
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield


@contextlib.contextmanager
def _eager_ranks() -> Iterator[None]:
    """The same for processes that are started within."""
    before = os.environ.get(NO_COMPILER)
    if not torch.cuda.is_available():
        os.environ[NO_COMPILER] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(NO_COMPILER, None)
        else:
            os.environ[NO_COMPILER] = before


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A starting engine seeds every generator of the process, and takes torch.set_num_threads away."""
    threads, count, python, numpy = torch.set_num_threads, torch.get_num_threads(), random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), eager(), _eager_ranks():
            yield
    finally:
        torch.set_num_threads = threads
        torch.set_num_threads(count)
        random.setstate(python)
        np.random.set_state(numpy)


def version() -> str:
    """Of vLLM, whatever its distribution is called."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return "unknown"
