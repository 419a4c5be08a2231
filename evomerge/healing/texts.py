"""Texts become rows of tokens, all of one length and full, so that every position is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.errors import DocumentError
from evomerge.recipe import Heal, locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def rows(heal: Heal, tokenizer: PreTrainedTokenizerBase, length: int, seed: int) -> Tensor:
    """As many rows as `heal.tokens` asks for, [rows, length] token ids; rows for fewer tokens are the first of these.

    Texts come in an order drawn from the seed, end-of-text between them; when all were used they repeat in a new order.
    """
    path = locate(heal.texts)
    texts = read_texts(path)
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    if not any(tokens):
        raise DocumentError(f"{path}: the tokenizer makes no token of any text in it")
    stream = _stream(tokens, tokenizer.eos_token_id, seed)
    needed = math.ceil(heal.tokens / length)
    return torch.tensor(list(islice(stream, needed * length))).view(needed, length)


def read_texts(path: Path) -> list[str]:
    """What stands under `text` in each line of a JSONL file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DocumentError(f"{path}: cannot be read ({reason}); `heal.texts` is a JSONL file") from None
    texts = [_text(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not any(texts):
        raise DocumentError(f'{path}: no text in it; each line is a mapping such as {{"text": "Once upon"}}')
    return texts


def _text(line: str, place: str) -> str:
    try:
        data: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DocumentError(f"{place}: not valid JSON: {error.msg}") from None
    text = data.get("text") if isinstance(data, dict) else None
    if not isinstance(text, str):
        raise DocumentError(f'{place}: no text; each line is a mapping such as {{"text": "Once upon"}}')
    return text


def _stream(texts: Sequence[list[int]], end: int | None, seed: int) -> Iterator[int]:
    """Tokens without end: the texts again and again, each round in an order of its own."""
    separator = [] if end is None else [end]
    for round_ in count():
        order = list(range(len(texts)))
        Random(f"heal {seed} {round_}").shuffle(order)
        for index in order:
            text = texts[index]
            yield from text
            if text and text[-1:] != separator:
                yield from separator
