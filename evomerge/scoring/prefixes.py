"""Beginnings that many prompts share: found once, read once for each candidate."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from evomerge.scoring.forward import Forward, KeyValue, Tree

GRAIN = 16  # beginnings are compared in steps of so many tokens
WORTH = 256  # tokens that a shared beginning must save before it is read by itself
ROOM = {"cpu": 256 << 20, "cuda": 4 << 30}  # bytes of keys and values that are kept


@dataclass
class Prefixes:
    """The shared beginnings that are known, and what the live weights remember of them."""

    tokens: int  # of one forward pass
    known: dict[tuple[int, ...], list[tuple[int, ...]]] = field(default_factory=dict)  # by their first tokens, longest first
    read: dict[tuple[int, ...], list[KeyValue]] = field(default_factory=dict)  # least recently used first
    state: Any = None

    def learn(self, prompts: Sequence[Sequence[int]]) -> None:
        """Notes what these prompts share and no known prefix covers."""
        for prefix in shared_prefixes([prompt for prompt in prompts if not self.find(prompt)]):
            group = self.known.setdefault(prefix[:GRAIN], [])
            group.append(prefix)
            group.sort(key=len, reverse=True)

    def find(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """The longest known prefix of a prompt; the prompt keeps a token of its own, the one that predicts."""
        group = self.known.get(tuple(prompt[:GRAIN]), [])
        return next((p for p in group if len(p) < len(prompt) and p == tuple(prompt[: len(p)])), ())

    def before(self, forward: Forward, trees: Sequence[Tree]) -> list[list[KeyValue]] | None:
        """For each tree what is remembered of its prefix; None where no tree has one."""
        if not any(tree.shared for tree in trees):
            return None
        self._forget_old_weights(forward.module)
        wanted = [tuple(tree.prompt[: tree.shared]) for tree in trees]
        missing = sorted({prefix for prefix in wanted if prefix not in self.read}, key=len)
        at_once = max(1, self.tokens // max(map(len, wanted)))
        for start in range(0, len(missing), at_once):
            part = missing[start : start + at_once]
            self.read |= dict(zip(part, forward.read(part), strict=True))
        found = {prefix: self.read.pop(prefix) for prefix in dict.fromkeys(wanted)}
        self._make_room(found.values(), forward.module.device.type)
        self.read |= found
        return [found[prefix] for prefix in wanted]

    def _forget_old_weights(self, module: Any) -> None:
        """Every write into a parameter raises its version: a candidate never meets the keys and values of another."""
        rope = (getattr(module.config, "rope_parameters", None), getattr(module.config, "max_position_embeddings", None))
        versions = [None if p.is_inference() else (id(p), p._version) for p in module.parameters()]
        if None in versions or self.state != (versions, repr(rope)):
            self.forget()
        self.state = (versions, repr(rope))

    def forget(self) -> None:
        self.read = {}

    def _make_room(self, needed: Iterable[list[KeyValue]], device: str) -> None:
        free = ROOM.get(device, ROOM["cuda"]) - sum(map(_bytes, needed))
        free -= sum(map(_bytes, self.read.values()))
        while free < 0 and self.read:
            free += _bytes(self.read.pop(next(iter(self.read))))


def _bytes(layers: list[KeyValue]) -> int:
    return sum(part.nbytes for layer in layers for part in layer)


class _Shared(NamedTuple):
    """Sequences that begin with the same `length` tokens."""

    length: int
    members: list[int]

    @property
    def saved(self) -> int:
        return self.length * (len(self.members) - 1)


def shared_prefixes(sequences: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The beginnings that save the most tokens when each of them is read once."""
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    common = [_common(sequences[a], sequences[b]) for a, b in itertools.pairwise(order)]
    groups = _groups(order, common) if order else []
    return [tuple(sequences[group.members[0]][: group.length]) for group in groups if group.saved >= WORTH]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    limit = min(len(a), len(b)) - 1
    return next((i for i in range(limit) if a[i] != b[i]), limit) // GRAIN * GRAIN


def _groups(order: list[int], common: list[int]) -> list[_Shared]:
    """Either all of them share their common beginning, or each part on its own shares more: whichever saves more tokens."""
    if len(order) == 1:
        return [_Shared(0, order)]
    least = min(common)
    parts: list[_Shared] = []
    start = 0
    for end in [*(i + 1 for i, c in enumerate(common) if c == least), len(order)]:
        parts += _groups(order[start:end], common[start : end - 1])
        start = end
    whole = _Shared(least, order)
    return [whole] if whole.saved >= sum(part.saved for part in parts) else parts


def pack(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Rows of like length together, as many as fit into `tokens` with their padding; longest first."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > tokens:
            batches.append([])
        batches[-1].append(i)
    return batches
