"""Greedy text with the right answer as a draft: one pass reads the whole draft, and every token the model would have written
itself is kept; what follows a miss is written on from there. The same text as one token at a time.

(Speculative decoding, Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, for greedy sampling and with a free draft.)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evomerge.scoring.forward import Batch, Forward, KeyValue, Memory, View

GUESS = 16  # draft tokens tried behind a miss, at most
WAVE = 128  # rows that write on together
SPARSE = 0.75  # share of them still writing, below which the others are left out


class Answer(NamedTuple):
    """A generated text; margin: the least lead of a draft token over its best rival, above 0 if the draft is the answer."""

    text: str
    margin: float | None


@dataclass(frozen=True)
class Stops:
    """When a text ends: a stop string, an end token, or its length."""

    tokenizer: Any
    strings: tuple[str, ...]
    ends: frozenset[int]
    limit: int

    def reached(self, tokens: Sequence[int]) -> bool:
        if tokens[-1] in self.ends or len(tokens) >= self.limit:
            return True
        return tokens[-1] in self._closing and any(stop in _decode(self.tokenizer, tuple(tokens)) for stop in self.strings)

    @functools.cached_property
    def _closing(self) -> frozenset[int]:
        """Tokens that can complete a stop string: their text has its last character, or is part of one."""
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        last = {stop[-1] for stop in self.strings if stop} | {"\N{REPLACEMENT CHARACTER}"}
        return frozenset(token for token, text in enumerate(texts) if last & set(text))

    def text(self, tokens: Sequence[int]) -> str:
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        text = _decode(self.tokenizer, tuple(tokens[:end]))
        for stop in self.strings:
            text = text.split(stop)[0] if stop else text
        return text


@functools.lru_cache(maxsize=1 << 16)
def _decode(tokenizer: Any, tokens: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


@dataclass
class Line:
    """One text as it is being written."""

    draft: Sequence[int]
    stops: Stops
    written: list[int] = field(default_factory=list)
    done: bool = False
    margin: float | None = None
    near: bool = False  # to the draft: does the model mostly say what it says?

    def guess(self) -> list[int]:
        """Draft tokens to try behind the last one written; the draft's last is never read, it ends the text."""
        return list(self.draft[len(self.written) : -1][:GUESS]) if self.near else []

    def take(self, guess: Sequence[int], said: Sequence[int]) -> int:
        """Keeps what the model said, as far as it had read its own words; tells how many guessed tokens were right."""
        for right, token in enumerate(said):
            self.written.append(token)
            self.done = self.stops.reached(self.written)
            if self.done or right == len(guess) or guess[right] != token:
                return right
        return len(guess)


def write(forward: Forward, batches: Iterator[tuple[Batch, View, list[Line]]]) -> None:
    """Completes the lines of all batches; a tree's only continuation is its draft, or one token of no meaning."""
    waiting: list[tuple[Line, list[KeyValue]]] = []
    for batch, view, lines in batches:
        waiting += _open(forward, batch, view, lines)
        if len(waiting) >= 2 * WAVE:
            waiting = _finish(forward, waiting)
    _finish(forward, waiting)


def _open(forward: Forward, batch: Batch, view: View, lines: list[Line]) -> list[tuple[Line, list[KeyValue]]]:
    """Reads prompts and drafts; gives the lines that go on, with what the model remembers of each."""
    view.keep = True
    logits = batch.logits(forward, view)
    said = logits.argmax(-1).tolist()
    leads = _leads(logits, batch.wanted).tolist()
    going, start = [], 0
    for row, line in enumerate(lines):
        end = start + batch.lengths[row]
        right = line.take(line.draft[:-1], said[start:end])
        if line.draft:
            line.margin = min(leads[start:end])
            line.near = 2 * sum(lead > 0 for lead in leads[start:end]) >= len(line.draft)
        if not line.done:
            tree = batch.trees[row]
            going.append((line, _remember(view, row, len(tree.prompt) - tree.shared + right)))
        start = end
    return going


def _leads(logits: Tensor, wanted: Tensor) -> Tensor:
    """How far each wanted token is ahead of its best rival, or behind it."""
    index = wanted[:, None]
    rivals = logits.scatter(1, index, -torch.inf).amax(-1)
    return logits.gather(1, index)[:, 0] - rivals


def _remember(view: View, row: int, read: int) -> list[KeyValue]:
    """A row's prefix and the first `read` of its own tokens: [heads, T, D]."""
    own = [KeyValue(key[row, :, :read], value[row, :, :read]) for key, value in view.kept]
    if view.before is None:
        return [KeyValue(key.clone(), value.clone()) for key, value in own]  # lets go of the batch
    pairs = zip(view.before[row], own, strict=True)
    return [KeyValue(torch.cat([b.key, o.key], 1), torch.cat([b.value, o.value], 1)) for b, o in pairs]


def _finish(forward: Forward, waiting: list[tuple[Line, list[KeyValue]]]) -> list[tuple[Line, list[KeyValue]]]:
    waiting.sort(key=lambda pair: pair[1][0].key.shape[1])
    for start in range(0, len(waiting), WAVE):
        lines, rows = zip(*waiting[start : start + WAVE], strict=True)
        _continue(forward, list(lines), Memory.of(rows, GUESS + 1))
    return []


def _continue(forward: Forward, lines: list[Line], memory: Memory) -> None:
    while not all(line.done for line in lines):
        going = [i for i, line in enumerate(lines) if not line.done]
        if len(going) < SPARSE * len(lines):  # finished rows ride along for a while: leaving them out copies all others
            lines = [lines[i] for i in going]
            memory = memory.select(torch.tensor(going, device=memory.lengths.device))
        guesses = [[] if line.done else line.guess() for line in lines]
        width = 1 + max(map(len, guesses))
        if memory.room < width:
            memory.widen(2 * GUESS)
        fed = [[line.written[-1], *guess] for line, guess in zip(lines, guesses, strict=True)]
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in fed], device=memory.lengths.device)
        positions = memory.lengths[:, None] + torch.arange(width, device=tokens.device)
        hidden = forward.hidden(tokens, positions, View(mask=memory.mask(width), memory=memory))
        said = forward.logits(hidden).argmax(-1).tolist()
        read = [
            0 if line.done else 1 + line.take(guess, row[: len(guess) + 1])
            for line, guess, row in zip(lines, guesses, said, strict=True)
        ]
        memory.lengths = memory.lengths + torch.tensor(read, device=tokens.device)
