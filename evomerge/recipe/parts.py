"""What a recipe is made of: curves, sources, rules, slices, context, healing, tokenizer; frozen data and nothing else."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")  # organisation/name, with a revision if wanted


DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Curve:
    """A number along the depth of the model: control points from first layer to last, for each group of rows or columns."""

    points: tuple[tuple[float, ...], ...]  # [groups][points]
    across: Literal["rows", "columns"] = "rows"  # what the groups are of

    def at(self, depth: float) -> tuple[float, ...]:
        """The number for each group at `depth` in [0, 1], linear between control points."""
        return tuple(_interpolate(points, depth) for points in self.points)

    def to_data(self) -> Any:
        groups = [points[0] if len(points) == 1 else list(points) for points in self.points]
        return groups[0] if len(groups) == 1 else {self.across: groups}


def _interpolate(points: tuple[float, ...], depth: float) -> float:
    place = depth * (len(points) - 1)
    left = min(int(place), max(len(points) - 2, 0))
    if len(points) == 1 or place in (left, left + 1):  # a control point itself, without the dust of an interpolation
        return points[int(place)]
    return points[left] + (points[left + 1] - points[left]) * (place - left)


@dataclass(frozen=True)
class Steps:
    """True or false, or a word, along the depth of the model: the values in turn, the last one from the last layer on."""

    values: tuple[Choice, ...]

    def at(self, depth: float) -> Choice:
        """The value at `depth` in [0, 1]; rounded as mergekit does it."""
        return self.values[int(depth * (len(self.values) - 1))]

    def to_data(self) -> list[Any]:
        return [plain(value) for value in self.values]


@dataclass(frozen=True)
class Cases:
    """A number, true or false, or a word by the name of a tensor: that of the first pattern that matches."""

    cases: tuple[tuple[str, Curve | Choice], ...]

    def of(self, name: str) -> Curve | Choice | None:
        return next((value for match, value in self.cases if fnmatch.fnmatchcase(name, match)), None)

    def to_data(self) -> list[Any]:
        return [{"match": match, "value": plain(value)} for match, value in self.cases]


Choice = bool | int | str | Steps | Cases  # what is not between two values: steps and cases may lie within one another
Knob = Curve | Choice | Mapping[str, Curve | Cases]


def plain(value: Curve | Choice) -> Any:
    """A value of a knob as it stands in a file."""
    return value.to_data() if isinstance(value, Curve | Steps | Cases) else value


@dataclass(frozen=True)
class Source:
    """A model to merge: a directory, a hub id, or `zoo:models/NAME` for one that ships with evomerge; perhaps with a LoRA."""

    model: str
    adapter: str | None = None  # a directory or hub id of a LoRA over this model
    fisher: str | None = None  # a file of `evomerge fisher`, for the method fisher
    gram: str | None = None  # a file of `evomerge gram`, for the method regmean

    @property
    def location(self) -> str:
        """One text for both, as mergekit writes them: what `Checkpoint.open` takes."""
        return f"{self.model}+{self.adapter}" if self.adapter else self.model

    def to_data(self) -> Any:
        told = {key: value for key, value in vars(self).items() if value is not None}
        return told if len(told) > 1 else self.model


@dataclass(frozen=True)
class Rule:
    """How the tensors whose names match are merged."""

    match: str
    method: str
    sources: tuple[str, ...]
    knobs: Mapping[str, Knob] = field(hash=False)  # every knob of the method, defaults filled in
    base: str = "base"  # what deltas are taken from: another model than the recipe's base, where it is one
    stacked: bool = True  # whether slices are about these tensors too; another tower's are merged as they lie

    def matches(self, name: str) -> bool:
        return fnmatch.fnmatchcase(name, self.match)


Layers = tuple[int, int]  # the first, and the one after the last


@dataclass(frozen=True)
class Slice:
    """A run of layers of the merged model; what lies before all layers is the first slice's, what comes after the last one's."""

    layers: Mapping[str, Layers] = field(hash=False)  # of each model that may be used here, `base` among them
    rules: tuple[Rule, ...] = ()  # tried before the recipe's; their curves run from the slice's first layer to its last
    scale: float = 1.0  # of what a block adds to the stream: 0 leaves it out

    @property
    def count(self) -> int:
        first, end = next(iter(self.layers.values()))
        return end - first


@dataclass(frozen=True)
class Context:
    """A context extension; what is None is left to the type's own default."""

    rope_type: str
    factor: float
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None


ROPE_TYPES = ("linear", "ntk", "yarn")


MIXTURES = ("shares", "likelihood")


@dataclass(frozen=True)
class Heal:
    """A short distillation after the merge: texts, teachers with their shares, and the usual dials of training."""

    tokens: int
    texts: str
    teachers: Mapping[str, float] = field(hash=False)
    mixture: str = "shares"  # or "likelihood": a teacher counts by its share × how well it foretold the text, token by token
    learning_rate: float = 3e-4
    temperature: float = 1.0


@dataclass(frozen=True)
class TokenRow:
    """Which row a token gets in models that have none for it, or with `force` in all: a model's, or zeros (source None)."""

    source: str | None
    force: bool = False
    token: str | None = None  # of another token than the one it is for
    token_id: int | None = None  # or the row itself


@dataclass(frozen=True)
class Tokenizer:
    """Whose vocabulary the merged model has: `union`, `base`, or a source's; and rows of single tokens."""

    source: str
    tokens: Mapping[str, TokenRow] = field(default_factory=dict, hash=False)
    pad_to_multiple_of: int | None = None

    def to_data(self) -> dict[str, Any]:
        data = {"source": self.source, "tokens": {token: _row_data(row) for token, row in self.tokens.items()}}
        return {key: value for key, value in (*data.items(), ("pad_to_multiple_of", self.pad_to_multiple_of)) if value}


AUTO = "auto"  # a chat template: the commonest of the models'


def locate(location: str) -> Path:
    """The path of a model or file: `zoo:` is the folder of models and tasks that ships with evomerge."""
    return Path(__file__).parents[1] / "zoo" / location[4:] if location.startswith("zoo:") else Path(location)


def _row_data(row: TokenRow) -> dict[str, Any]:
    told = {"token": row.token} if row.token is not None else {"token_id": row.token_id} if row.token_id is not None else {}
    source = (
        {"kind": "zero"} if row.source is None else {"kind": "model_token", "model": row.source, **told} if told else row.source
    )
    return {"source": source, "force": row.force}
