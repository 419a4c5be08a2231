"""The tokenizer that every candidate shares: that of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evomerge.errors import CheckpointError, ScoringError

NO_LIMIT = 1 << 30  # lm-eval would cut longer prompts on the left, and only log it


def load_tokenizer(model: Path | None) -> Any:
    """The tokenizer of a model directory. Raises ScoringError where none is named, CheckpointError where it is broken."""
    from transformers import AutoTokenizer

    if model is None:
        raise ScoringError("scoring: no tokenizer; say which model directory has it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise CheckpointError(f"{model}: its tokenizer cannot be loaded ({line}); is tokenizer.json there?") from None
    tokenizer.model_max_length = NO_LIMIT  # prompts past the trained length are meant: no warning
    return tokenizer
