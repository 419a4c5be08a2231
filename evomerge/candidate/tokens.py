"""A tokenizer.json as plain data: which token has which id, and the union of several."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.candidate.checkpoint import Checkpoint, read_json
from evomerge.errors import CheckpointError

FILE = "tokenizer.json"


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer.json says; `ids` has every token, added ones too."""

    data: Mapping[str, Any]
    ids: Mapping[str, int]

    @classmethod
    def of(cls, model: Checkpoint) -> Tokens:
        """The tokens of a model. Raises CheckpointError where it has no tokenizer.json, or one of no known form."""
        file = model.path / FILE
        if not file.is_file():
            raise CheckpointError(
                f"{model.path}: has no {FILE}, by which vocabularies are aligned; save its tokenizer again"
                " (transformers: AutoTokenizer.from_pretrained, save_pretrained)"
            )
        data = read_json(file)
        try:
            return cls(data, dict(_ids(data)))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError(f"{file}: is no tokenizer.json of a known form; copy or download it again") from None

    @property
    def kind(self) -> str:
        return str(self.data["model"].get("type", "BPE"))

    @property
    def added(self) -> dict[str, Mapping[str, Any]]:
        """The tokens beside the trained vocabulary, as <|im_start|>, with how they are matched."""
        return {token["content"]: token for token in self.data.get("added_tokens") or ()}


def _ids(data: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        yield from vocabulary.items()
    else:  # Unigram: [token, score], the id is the place
        yield from ((token, i) for i, (token, _) in enumerate(vocabulary))
    yield from ((token["content"], int(token["id"])) for token in data.get("added_tokens") or ())


def union(base: Tokens, others: Mapping[str, Tokens]) -> Tokens:
    """The base's tokens with their ids, then what each other one has beside them.

    A trained vocabulary grows by the other's pieces and, in BPE, its merges after the base's own. Added tokens come last.
    Raises CheckpointError where the tokenizers are of different kinds.
    """
    data, ids = copy.deepcopy(dict(base.data)), dict(base.ids)
    for name, other in others.items():
        if other.kind != base.kind:
            raise CheckpointError(
                f"tokenizer: the tokenizer of {name!r} is a {other.kind}, that of the base a {base.kind}: these models are of"
                " different families, and their tokens do not mean the same"
            )
        pieces = [token for token in other.ids if token not in ids and token not in other.added]
        _grow(data, ids, pieces, other)
    for other in others.values():
        for token, how in other.added.items():
            _add(data, ids, token, how)
    return Tokens(data, ids)


def with_tokens(tokens: Tokens, wanted: Mapping[str, Any]) -> Tokens:
    """The same with these tokens added, where they are not there."""
    data, ids = copy.deepcopy(dict(tokens.data)), dict(tokens.ids)
    for token in wanted:
        _add(data, ids, token, {"special": False})
    return Tokens(data, ids)


def _grow(data: dict[str, Any], ids: dict[str, int], pieces: list[str], other: Tokens) -> None:
    vocabulary = data["model"]["vocab"]
    if not isinstance(vocabulary, dict):  # in Unigram the place in the list is the id, and what follows is taken
        for piece in pieces:
            _add(data, ids, piece, {"special": False})
        return
    start = 1 + max(ids.values(), default=-1)
    new = {piece: start + i for i, piece in enumerate(pieces)}
    vocabulary.update(new)
    ids.update(new)
    if "merges" in data["model"]:
        own = [_pair(merge) for merge in data["model"]["merges"]]
        theirs = [_pair(merge) for merge in other.data["model"]["merges"]]
        known = set(own)
        data["model"]["merges"] = own + [pair for pair in theirs if "".join(pair) in new and pair not in known]


def _pair(merge: str | list[str]) -> tuple[str, ...]:
    return tuple(merge.split(" ", 1) if isinstance(merge, str) else merge)


def _add(data: dict[str, Any], ids: dict[str, int], token: str, how: Mapping[str, Any]) -> None:
    if token in ids:
        return
    ids[token] = 1 + max(ids.values(), default=-1)
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    data["added_tokens"] = [*(data.get("added_tokens") or ()), {**usual, **how, "id": ids[token], "content": token}]


def written(tokens: Tokens) -> str:
    """The text of a tokenizer.json."""
    return json.dumps(tokens.data, ensure_ascii=False, indent=2) + "\n"
