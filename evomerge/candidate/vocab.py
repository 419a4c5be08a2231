"""Models with different vocabularies: their rows aligned by token, so that they merge as if they had one.

Where a model has no row for a token it gets a default: what the recipe names for the token, else the base's row, else the row
of the only model that has it, else the mean of those that do. So its delta there is nothing. Rows that stand for no token (a
vocabulary padded to a multiple) are kept; rows that `pad_to_multiple_of` adds are the mean of the others.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import repeat
from typing import TYPE_CHECKING, Any

from evomerge.candidate.checkpoint import Checkpoint, TensorInfo
from evomerge.candidate.stack import is_embedding, numbered
from evomerge.candidate.tokens import FILE, Tokens, union, with_tokens, written
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import Tokenizer, TokenRow

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Ids = np.ndarray[Any, np.dtype[np.int64]]

MEAN, ZERO = -1, -2  # donors that are no model
SAMPLE = 4096  # tokens whose rows are compared
ALIKE = 0.5  # median cosine: rows of one family's fine-tunes are far above it, those of models trained apart near 0
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


@dataclass(frozen=True)
class Alignment:
    """One vocabulary for several models; the first is the base."""

    models: Mapping[str, Checkpoint]
    tokens: Tokens  # the merged model's
    known: Mapping[str, Tokens]
    owner: str  # whose padding rows and special ids are kept
    wanted: Mapping[str, TokenRow]
    multiple: int

    @functools.cached_property
    def rows(self) -> int:
        """Rows of the merged embedding: every token and the owner's padding, to the multiple."""
        return -(-self.filled // self.multiple) * self.multiple

    @functools.cached_property
    def filled(self) -> int:
        """Rows that are not there for the multiple only."""
        return max(self._kept, 1 + max(self.tokens.ids.values(), default=-1))

    @property
    def _kept(self) -> int:
        return _size(self.models[self.owner])

    @functools.cached_property
    def key(self) -> str:
        """A hash of what text becomes under the merged tokenizer."""
        return sha256(json.dumps(self.tokens.data, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def ids(self) -> dict[str, Ids]:
        """For each model, where each row of the merged embedding lies in its own; -1 where it has none."""
        import numpy as np

        return {name: self._found(np, name) for name in self.models}

    def _found(self, np: Any, name: str) -> Ids:
        mine, size = self.known[name].ids, _size(self.models[name])
        places = np.fromiter(self.tokens.ids.values(), np.int64, len(self.tokens.ids))
        own = np.fromiter(map(mine.get, self.tokens.ids, repeat(-1)), np.int64, len(places))
        found: Ids = np.arange(self.rows, dtype=np.int64)
        found[found >= min(size, self._kept)] = -1  # padding stands for the padding at the same place
        found[np.isin(found, np.fromiter(mine.values(), np.int64, len(mine)))] = -1
        found[places] = np.where(own < size, own, -1)
        return found

    @functools.cached_property
    def donors(self) -> tuple[Ids, Ids, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Of each row: the number of the model that gives the default (or MEAN, ZERO), its row there, and whether for all."""
        import numpy as np

        table = np.stack([self.ids[name] for name in self.models])
        there, owner = table >= 0, list(self.models).index(self.owner)
        donor = np.where(there[0], 0, np.where(there.sum(0) == 1, there.argmax(0), np.where(there.any(0), MEAN, ZERO)))
        padding = np.ones(self.rows, bool)
        padding[np.fromiter(self.tokens.ids.values(), np.int64)] = False
        donor[padding & there[owner]] = owner
        row = np.where(donor >= 0, table[np.maximum(donor, 0), np.arange(self.rows)], -1)
        force = np.zeros(self.rows, bool)
        for token, wish in self.wanted.items():
            place = self.tokens.ids[token]
            donor[place], row[place], force[place] = *self._wished(token, wish), wish.force
        return donor, row, force

    def _wished(self, token: str, wish: TokenRow) -> tuple[int, int]:
        if wish.source is None:
            return ZERO, -1
        told = wish.token if wish.token is not None else token
        row = wish.token_id if wish.token_id is not None else self.known[wish.source].ids.get(told, -1)
        if not 0 <= row < _size(self.models[wish.source]):
            what = f"token {told!r}" if wish.token_id is None else f"row {row}"
            raise RecipeError(f"tokenizer.tokens.{token}: {wish.source!r} has no {what}; name a model that has it")
        return list(self.models).index(wish.source), row

    def read(self, name: str, tensor: str) -> Tensor:
        """A tensor of one model with a row for each token; float32 or wider where rows are means."""
        import torch

        parts = {model: checkpoint.read(tensor) for model, checkpoint in self.models.items()}
        donor, row, force = (torch.from_numpy(part) for part in self.donors)
        ids = torch.from_numpy(self.ids[name])
        missing, filled = (ids < 0) | force, self.filled
        dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts.values()))
        if bool((missing & (donor == MEAN)).any()) or filled < self.rows:
            dtype = torch.promote_types(dtype, torch.float32)
        own = parts[name].index_select(0, ids.clamp(min=0)).to(dtype)
        for number, part in enumerate(parts.values()):
            given = (missing & (donor == number)).nonzero()[:, 0]
            own[given] = part[row[given]].to(dtype)
        own[missing & (donor == ZERO)] = 0
        shared = (missing & (donor == MEAN)).nonzero()[:, 0]
        own[shared] = self._mean(list(parts.values()), shared, dtype)
        own[filled:] = own[:filled].mean(0, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)
        return own

    def _mean(self, parts: Sequence[Tensor], rows: Tensor, dtype: Any) -> Tensor:
        """The mean row of the models that have each of these tokens."""
        import torch

        total = parts[0].new_zeros((len(rows), *parts[0].shape[1:]), dtype=dtype)
        count = torch.zeros(len(rows), dtype=dtype)
        for name, part in zip(self.models, parts, strict=True):
            ids = torch.from_numpy(self.ids[name])[rows]
            has = ids >= 0
            total[has] += part[ids[has]].to(dtype)
            count += has
        return total / count.clamp(min=1).reshape(-1, *(1 for _ in parts[0].shape[1:]))

    def files(self) -> dict[str, str]:
        """The tokenizer's file as it must be written, where it is no model's own."""
        return {FILE: written(self.tokens)} if self.tokens.data != self.known[self.owner].data else {}


@dataclass(frozen=True)
class Realigned(Checkpoint):
    """A model whose embedding and head have the rows of another vocabulary."""

    inner: Checkpoint | None = None
    alignment: Alignment | None = None
    role: str = ""
    lengthened: frozenset[str] = field(default_factory=frozenset)

    def read(self, name: str) -> Tensor:
        """One tensor, aligned where its rows stand for tokens."""
        assert self.inner is not None
        assert self.alignment is not None
        return self.alignment.read(self.role, name) if name in self.lengthened else self.inner.read(name)

    @property
    def fingerprint(self) -> str:
        """That of the model as it lies on disk: how its rows are aligned is the recipe's word, and part of its key."""
        assert self.inner is not None
        return self.inner.fingerprint

    @property
    def tokenizer(self) -> str | None:
        return self.alignment.key if self.alignment else None


def align(asked: Tokenizer, models: Mapping[str, Checkpoint]) -> Alignment:
    """The alignment that a recipe asks for; `models` are base and sources by name, the base first.

    From headers and tokenizer.json alone. Raises CheckpointError where a model has no tokenizer or is of another family.
    """
    known = {name: Tokens.of(model) for name, model in models.items()}
    others = {name: tokens for name, tokens in known.items() if name != "base"}
    owner = "base" if asked.source == "union" else asked.source
    tokens = union(known["base"], others) if asked.source == "union" else known[owner]
    if absent := [token for token in asked.tokens if token not in tokens.ids]:
        tokens = with_tokens(tokens, dict.fromkeys(absent))
    alignment = Alignment(models, tokens, known, owner, asked.tokens, asked.pad_to_multiple_of or 1)
    for token, wish in asked.tokens.items():
        alignment._wished(token, wish)
    return alignment


def realigned(alignment: Alignment) -> dict[str, Realigned]:
    """Every model of an alignment as one with its vocabulary."""
    return {name: _realigned(alignment, name, model) for name, model in alignment.models.items()}


def _realigned(alignment: Alignment, name: str, model: Checkpoint) -> Realigned:
    long = frozenset(vocabulary_tensors(model))
    if not long:
        raise CheckpointError(f"{model.path}: no tensor has the {_size(model)} rows of its vocabulary; check its config.json")
    tensors = {
        key: TensorInfo(info.dtype, (alignment.rows, *info.shape[1:])) if key in long else info
        for key, info in model.tensors.items()
    }
    config = _config(alignment, model.config)
    return Realigned(model.path, config, tensors, model.files, inner=model, alignment=alignment, role=name, lengthened=long)


def _config(alignment: Alignment, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the new number of rows, and the special ids of the tokenizer's owner."""
    new = dict(config)
    owner = alignment.models[alignment.owner].config
    new |= {key: owner[key] for key in SPECIAL if key in owner}
    if isinstance(config.get("text_config"), Mapping):
        new["text_config"] = {**config["text_config"], "vocab_size": alignment.rows}
    if "vocab_size" in config or "text_config" not in config:
        new["vocab_size"] = alignment.rows
    return new


def vocabulary_tensors(model: Checkpoint) -> list[str]:
    """The tensors with a row for each token: embedding, head and the head's bias, by their shape."""
    size = _size(model)
    return [name for name, info in model.tensors.items() if info.shape[:1] == (size,) and not numbered(name)]


def _size(model: Checkpoint) -> int:
    config = model.config
    inner = config.get("text_config")
    size = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, Mapping) else None)
    if not isinstance(size, int):
        raise CheckpointError(f"{model.path}: its config.json names no vocab_size, so no rows can be aligned by token")
    return size


def refuse_strangers(alignment: Alignment) -> None:
    """Raises CheckpointError where a model was trained apart: its rows point elsewhere than the base's for the same tokens."""
    import torch

    base = alignment.models["base"]
    name = max(vocabulary_tensors(base), key=is_embedding)
    for role, model in list(alignment.models.items())[1:]:
        both = (alignment.ids["base"] >= 0) & (alignment.ids[role] >= 0)
        places = both.nonzero()[0][:: max(1, int(both.sum()) // SAMPLE)]
        mine, theirs = (
            one.read(name)[torch.from_numpy(alignment.ids[who][places])].double() for who, one in (("base", base), (role, model))
        )
        cosine = float(torch.cosine_similarity(mine, theirs, dim=1).median()) if len(places) else 0.0
        if not cosine >= ALIKE:
            raise CheckpointError(
                f"{model.path}: source {role!r} is of another family than the base {base.path}: the rows of {len(places)} tokens"
                f" that both have point elsewhere (median cosine {cosine:.2f}), so the two were trained apart; merge fine-tunes"
                " of one model"
            )
