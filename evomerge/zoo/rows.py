"""Documents packed into full rows of tokens, so that every position up to the trained length is seen."""

from collections.abc import Mapping
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from .skills import Document, stream
from .tokenizer import encode

PROMPT_WEIGHT = 0.1  # prompts are mostly random letters: there is little to learn in them


class Rows(NamedTuple):
    """Tokens and how much each of them counts in the loss."""

    tokens: Tensor  # [rows, length + 1]
    weights: Tensor  # [rows, length + 1]


class Packer:
    """Rows drawn from a mixture of skills; the mixture may change between two calls."""

    def __init__(self, skills: tuple[str, ...], length: int, seed: str) -> None:
        self.random = Random(seed)
        self.length = length
        self.streams = {skill: stream(skill, "train", self.random) for skill in skills}

    def draw(self, rows: int, mixture: Mapping[str, float]) -> Rows:
        """`rows` full rows; each begins with a whole document and ends where its room ends."""
        packed = [self._row(mixture) for _ in range(rows)]
        return Rows(torch.tensor([ids for ids, _ in packed]), torch.tensor([weights for _, weights in packed]))

    def _row(self, mixture: Mapping[str, float]) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        names, shares = list(mixture), list(mixture.values())
        while len(ids) <= self.length:
            document = next(self.streams[self.random.choices(names, shares)[0]])
            ids += encode(document.text)
            weights += token_weights(document)
        return ids[: self.length + 1], weights[: self.length + 1]


def token_weights(document: Document) -> list[float]:
    """Little for the prompt, one for every token of the answer and its newline."""
    return [PROMPT_WEIGHT] * len(document.prompt) + [1.0] * (len(document.answer) + 1)


def packed_text(skills: tuple[str, ...], length: int, random: Random) -> str:
    """Whole training documents, each of a skill drawn at random, as many as `length` characters hold."""
    streams = {skill: stream(skill, "train", random) for skill in skills}
    text = ""
    while len(text + (more := next(streams[random.choice(skills)]).text)) <= length:
        text += more
    return text
