"""What to merge: a recipe is pure data, strict when read, the same bytes when written, and hashed.

    recipe:
      base: zoo:models/base
      sources: {sort: zoo:models/sort, reverse: zoo:models/reverse}
      rules:                                        # first match wins
        - {match: "*mlp*", method: ties, weight: {sort: 0.6, reverse: [0.2, 0.8]}, density: 0.3}
        - {match: "*", method: linear, weight: 1.0}

A number may be a list: control points of a curve over depth. `{rows: [..]}` gives a number to each of equal groups of rows.
A list of `{match: PATTERN, value: NUMBER}` says a number by the name of the tensor: the first that matches.

    slices:                                         # the layers of the merged model, any of any model in any order
      - {source: sort, layers: [0, 4]}              # a copy of layers 0 to 3
      - {layers: {base: [2, 6], sort: [2, 6]}, rules: [{match: "*", method: slerp, t: [0.2, 0.8]}], scale: 0.9}
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evomerge.document import REQUIRED, Block, Place, describe, dump_yaml, nearest, number, read_yaml
from evomerge.errors import RecipeError

Kind = Literal["number", "count", "flag", "word"]


@dataclass(frozen=True)
class Dial:
    """What values a knob takes; `per_source` knobs have one for every source of the rule, `whole` ones no rows."""

    kind: Kind
    per_source: bool = False
    low: float = -1e6
    high: float = 1e6
    words: tuple[str, ...] = ()
    whole: bool = False  # one number for a whole tensor


DIALS: dict[str, Dial] = {
    "weight": Dial("number", per_source=True),
    "density": Dial("number", per_source=True, low=0.0, high=1.0, whole=True),  # share of a delta that is kept
    "drop_rate": Dial("number", per_source=True, low=0.0, high=0.999, whole=True),  # share of a delta that DARE drops
    "gamma": Dial("number", per_source=True, low=0.0, high=1.0, whole=True),  # share of a delta that is cut off as outliers
    "select_topk": Dial("number", low=0.0, high=1.0, whole=True),  # share of what differs that SCE selects
    "epsilon": Dial("number", low=0.0, whole=True),  # what is smaller counts as nothing
    "lambda": Dial("number"),
    "t": Dial("number", low=0.0, high=1.0),
    "scale": Dial("number"),
    "r": Dial("number", low=0.0, whole=True),  # how much RAM+ makes up for averaging
    "alpha": Dial("number", low=0.0, whole=True),  # and at most
    "clip_norm": Dial("number", low=0.0, whole=True),  # the longest that a client's delta stays
    "tol": Dial("number", low=0.0, whole=True),
    "max_iter": Dial("count", low=1),
    "normalize": Dial("flag"),
    "rescale": Dial("flag"),
    "filter_wise": Dial("flag"),
    "clip": Dial("flag"),
    "between": Dial("word", words=("models", "deltas")),
    "along": Dial("word", words=("tensor", "rows", "columns")),  # what one vector is
    "variant": Dial("word", words=("mergekit", "paper")),
}
WINDOW = Dial("number", per_source=True, low=0.0, high=0.5, whole=True)  # DELLA: how far chances to stay reach around density
STRENGTH = Dial("number", per_source=True, whole=True)  # of a source's singular values
OWN_DIALS = {
    ("della", "epsilon"): WINDOW, ("della_linear", "epsilon"): WINDOW,
    ("regmean", "weight"): STRENGTH, ("regmean", "alpha"): Dial("number", low=0.0, high=1.0, whole=True),
    ("tsvm", "weight"): STRENGTH, ("iso_c", "weight"): STRENGTH,
}  # fmt: skip

# What each method takes, with its default; REQUIRED where a recipe must say.
METHOD_KNOBS: dict[str, dict[str, Any]] = {
    "linear": {"weight": REQUIRED, "normalize": True},
    "task_arithmetic": {"weight": REQUIRED, "lambda": 1.0, "normalize": False},
    "slerp": {"t": REQUIRED, "variant": "mergekit"},
    "ties": {"weight": 1.0, "density": REQUIRED, "lambda": 1.0, "normalize": True, "rescale": False, "variant": "mergekit"},
    "dare_linear": {
        "weight": REQUIRED, "drop_rate": REQUIRED, "lambda": 1.0, "normalize": False, "rescale": True, "variant": "mergekit",
    },
    "dare_ties": {
        "weight": REQUIRED, "drop_rate": REQUIRED, "lambda": 1.0, "normalize": False, "rescale": True, "variant": "mergekit",
    },
    "della": {
        "weight": REQUIRED, "density": REQUIRED, "epsilon": 0.15, "lambda": 1.0, "normalize": True, "rescale": True,
        "variant": "mergekit",
    },
    "della_linear": {
        "weight": REQUIRED, "density": REQUIRED, "epsilon": 0.15, "lambda": 1.0, "normalize": False, "rescale": True,
        "variant": "mergekit",
    },
    "breadcrumbs": {
        "weight": REQUIRED, "density": REQUIRED, "gamma": 0.01, "lambda": 1.0, "normalize": False, "rescale": False,
    },
    "breadcrumbs_ties": {
        "weight": REQUIRED, "density": REQUIRED, "gamma": 0.01, "lambda": 1.0, "normalize": False, "rescale": False,
        "variant": "mergekit",
    },
    "model_stock": {"filter_wise": False, "clip": False, "variant": "mergekit"},
    "nuslerp": {"weight": REQUIRED, "along": "tensor", "between": "models"},
    "multislerp": {"weight": REQUIRED, "normalize": True, "epsilon": 1e-8, "between": "models"},
    "karcher": {"weight": 1.0, "max_iter": 10, "tol": 1e-5, "between": "models"},
    "sce": {"select_topk": 1.0, "variant": "mergekit"},
    "nearswap": {"t": REQUIRED},
    "arcee_fusion": {},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
    "tsvm": {"weight": 1.0, "lambda": 1.0},
    "iso_c": {"weight": 1.0, "lambda": 1.0},
    "fedavg": {"weight": 1.0, "clip_norm": REQUIRED, "lambda": 1.0},
    "fisher": {"weight": 1.0, "epsilon": 1e-6},
    "regmean": {"weight": 1.0, "alpha": 0.9},
    "passthrough": {"scale": 1.0},
}  # fmt: skip
# How many sources a method takes, where not any number: at least, at most
COUNTS = {
    "slerp": (1, 1), "nearswap": (1, 1), "arcee_fusion": (1, 1), "passthrough": (1, 1), "nuslerp": (2, 2), "model_stock": (2, 99),
}  # fmt: skip
# Methods over whole models, where the base may stand among the sources
INCLUDES_BASE = ("linear", "passthrough", "nuslerp", "multislerp", "karcher", "fisher", "regmean")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")  # organisation/name, with a revision if wanted
SYNONYMS = {"density": "drop_rate", "drop_rate": "density"}
DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Curve:
    """A number along the depth of the model: control points from first layer to last, for each group of rows."""

    points: tuple[tuple[float, ...], ...]  # [rows][points]

    def at(self, depth: float) -> tuple[float, ...]:
        """The number for each row group at `depth` in [0, 1], linear between control points."""
        return tuple(_interpolate(points, depth) for points in self.points)

    def to_data(self) -> Any:
        rows = [points[0] if len(points) == 1 else list(points) for points in self.points]
        return rows[0] if len(rows) == 1 else {"rows": rows}


def _interpolate(points: tuple[float, ...], depth: float) -> float:
    place = depth * (len(points) - 1)
    left = min(int(place), max(len(points) - 2, 0))
    if len(points) == 1 or place in (left, left + 1):  # a control point itself, without the dust of an interpolation
        return points[int(place)]
    return points[left] + (points[left + 1] - points[left]) * (place - left)


@dataclass(frozen=True)
class Cases:
    """A number, or true or false, by the name of a tensor: that of the first pattern that matches."""

    cases: tuple[tuple[str, Curve | bool], ...]

    def of(self, name: str) -> Curve | bool | None:
        return next((value for match, value in self.cases if fnmatch.fnmatchcase(name, match)), None)

    def to_data(self) -> list[Any]:
        return [{"match": match, "value": value.to_data() if isinstance(value, Curve) else value} for match, value in self.cases]


Knob = Curve | Cases | bool | int | str | Mapping[str, Curve | Cases]


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


@dataclass(frozen=True)
class Recipe:
    """What to merge, and how."""

    base: Source
    sources: Mapping[str, Source] = field(hash=False)
    rules: tuple[Rule, ...]
    context: Context | None = None
    heal: Heal | None = None
    tokenizer: Tokenizer | None = None
    dtype: str | None = None  # of the written weights; None keeps each tensor's own
    seed: int = 0
    slices: tuple[Slice, ...] = ()  # none: the base's layers as they are

    @classmethod
    def from_data(cls, data: object, place: Place, root: Path | None = None) -> Recipe:
        """A recipe from plain data; relative paths are taken from `root`. Raises RecipeError or DocumentError."""
        block = Block(data, place, ["base", "sources", "rules", "slices", "context", "heal", "tokenizer", "dtype", "seed"])

        sources = {
            str(name): _source(model, place / "sources" / str(name), root)
            for name, model in block.mapping("sources", *[{}] * ("slices" in block)).items()
        }
        if "base" in sources:
            raise RecipeError(f"{place / 'sources'}: 'base' is the name of the base itself; call this source something else")
        if not sources and "slices" not in block:
            raise RecipeError(f"{place / 'sources'}: no source; name at least one model to merge into the base")
        rules = block.sequence("rules", *[[]] * ("slices" in block))
        return cls(
            base=_source(block.get("base"), place / "base", root),
            sources=sources,
            rules=tuple(_rule(rule, place / "rules" / i, tuple(sources)) for i, rule in enumerate(rules)),
            context=_context(block),
            heal=_heal(block, tuple(sources), root),
            tokenizer=_tokenizer(block, tuple(sources)),
            dtype=block.text("dtype", None, among=DTYPES),
            seed=block.integer("seed", 0),
            slices=_slices(block, tuple(sources)),
        )

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """The recipe in a YAML file: the file itself, or what stands under its key `recipe`."""
        data, place = read_yaml(path), Place(str(path))
        if isinstance(data, Mapping) and "recipe" in data:
            data, place = data["recipe"], place / "recipe"
        return cls.from_data(data, place, Path(path).parent)

    def to_data(self) -> dict[str, Any]:
        """Plain data that `from_data` turns back into an equal recipe."""
        data: dict[str, Any] = {
            "base": self.base.to_data(),
            "sources": {name: source.to_data() for name, source in self.sources.items()},
            "rules": [_rule_data(rule) for rule in self.rules],
            "slices": [_slice_data(part) for part in self.slices] or None,
            "context": self.context and {k: v for k, v in vars(self.context).items() if v is not None},
            "heal": self.heal and {**vars(self.heal), "teachers": dict(self.heal.teachers)},
            "tokenizer": self.tokenizer and self.tokenizer.to_data(),
            "dtype": self.dtype,
            "seed": self.seed,
        }
        return {key: value for key, value in data.items() if value is not None}

    def to_yaml(self) -> str:
        return dump_yaml({"recipe": self.to_data()})

    @property
    def all_rules(self) -> dict[str, Rule]:
        """Every rule by its place in the recipe."""
        inner = {f"slices[{i}].rules[{j}]": r for i, part in enumerate(self.slices) for j, r in enumerate(part.rules)}
        return {**inner, **{f"rules[{i}]": rule for i, rule in enumerate(self.rules)}}

    def key(self, fingerprints: Mapping[str, str] | None = None) -> str:
        """SHA-256 of all that decides the merged bytes: the recipe without its paths, and a fingerprint of each file set."""
        data = self.to_data()
        data["base"], data["sources"] = None, sorted(self.sources)
        if self.heal:
            data["heal"] = {**data["heal"], "texts": None}
        canonical = json.dumps([data, dict(fingerprints or {})], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _source(data: object, place: Place, root: Path | None) -> Source:
    rest: dict[str, str] = {}
    if isinstance(data, Mapping):
        block = Block(data, place, list(Source.__dataclass_fields__))
        rest = {key: block.text(key) for key in ("adapter", "fisher", "gram") if key in block}
        data = block.text("model")
    if not isinstance(data, str):
        raise RecipeError(f"{place}: expected the path of a model, found {describe(data)}")
    return Source(_absolute(data, root), **{key: _absolute(path, root) for key, path in rest.items()})


def locate(location: str) -> Path:
    """The path of a model or file: `zoo:` is the folder of models and tasks that ships with evomerge."""
    return Path(__file__).parent / "zoo" / location[4:] if location.startswith("zoo:") else Path(location)


def _absolute(location: str, root: Path | None) -> str:
    """A path from where the recipe lies; what is no path there and has the form of a hub id is one."""
    if location.startswith("zoo:") or root is None or Path(location).is_absolute():
        return location
    return location if HUB_ID.match(location) and not (root / location).exists() else str((root / location).resolve())


def _rule(data: object, place: Place, sources: tuple[str, ...]) -> Rule:
    block = Block(data, place, ["match", "method", "sources", *DIALS])
    method = block.text("method", among=tuple(METHOD_KNOBS))
    taken = METHOD_KNOBS[method]
    for knob in block.data:
        if knob in DIALS and knob not in taken:
            _refuse_knob(knob, method, place)
    names = tuple(block.sequence("sources", list(_named(block, sources))))
    _check_sources(names, method, sources, place)
    knobs = {knob: _knob(block, knob, default, method, names) for knob, default in taken.items()}
    if knobs.get("between") == "deltas" and "base" in names:
        raise RecipeError(f"{place}: between deltas there is nothing of the base's; take it out of the sources")
    return Rule(block.text("match"), method, names, knobs)


def _refuse_knob(knob: str, method: str, place: Place) -> None:
    taken = METHOD_KNOBS[method]
    twin = SYNONYMS.get(knob)
    if twin in taken:
        raise RecipeError(
            f"{place}: {method} takes {twin!r}, not {knob!r}: density is the share kept, drop_rate the share dropped"
        )
    raise RecipeError(f"{place}: {method} takes no {knob!r}{nearest(knob, tuple(taken))}")


def _named(block: Block, sources: tuple[str, ...]) -> tuple[str, ...]:
    """The sources of a rule that does not list them: all, and the base where a weight names it."""
    weight = block.get("weight", None)
    return ("base", *sources) if isinstance(weight, Mapping) and "base" in weight else sources


def _check_sources(names: tuple[str, ...], method: str, sources: tuple[str, ...], place: Place) -> None:
    known = ("base", *sources) if method in INCLUDES_BASE else sources
    for name in names:
        if name not in known:
            raise RecipeError(f"{place / 'sources'}: {name!r} is not a source of {method} here{nearest(str(name), known)}")
    low, high = COUNTS.get(method, (1, 99))
    if not low <= len(names) <= high:
        wanted = f"{'exactly' if low == high else 'at least'} {('one source', 'two sources')[low - 1]}"
        raise RecipeError(
            f"{place}: {method} takes {wanted}, here it has {len(names)}: add `sources: [{', '.join(known[-low:])}]`"
        )
    if len(set(names)) < len(names):
        raise RecipeError(f"{place / 'sources'}: a source stands twice")


def dial_of(method: str, knob: str) -> Dial:
    """What values this knob takes in this method."""
    return OWN_DIALS.get((method, knob), DIALS[knob])


def _knob(block: Block, knob: str, default: Any, method: str, names: tuple[str, ...]) -> Knob:
    dial, place = dial_of(method, knob), block.place / knob
    if dial.kind == "flag":
        if isinstance(block.get(knob, default), list):
            return _cases(block.sequence(knob), place, default, _flag)
        return bool(block.flag(knob, default))
    if dial.kind == "count":
        return int(block.integer(knob, default, low=int(dial.low)))
    if dial.kind == "word":
        return str(block.text(knob, default, among=dial.words))
    value = block.get(knob, None if default is REQUIRED else default)
    if value is None:
        raise RecipeError(f"{block.place}: {method} needs {knob!r}: a number{', or one for each source' * dial.per_source}")
    if not dial.per_source:
        return _number(value, place, dial, default)
    if not isinstance(value, Mapping) or "rows" in value:
        return {name: _number(value, place, dial, default) for name in names}
    for name in value:
        if name not in names:
            raise RecipeError(f"{place}: {name!r} is not a source of this rule{nearest(str(name), names)}")
    if missing := [name for name in names if name not in value]:
        raise RecipeError(f"{place}: nothing for {', '.join(missing)}; give each source of the rule a number (0 leaves it out)")
    return {name: _number(value[name], place / name, dial, default) for name in names}


def _number(data: Any, place: Place, dial: Dial, default: Any) -> Curve | Cases:
    if isinstance(data, list) and any(isinstance(item, Mapping) for item in data):
        return _cases(data, place, default, lambda value, where: _curve(value, where, dial))
    return _curve(data, place, dial)


def _flag(data: Any, place: Place) -> bool:
    return bool(Block({"value": data}, place, ["value"]).flag("value"))


def _cases(data: list[Any], place: Place, default: Any, parse: Callable[[Any, Place], Curve | bool]) -> Cases:
    """`[{match: PATTERN, value: ..}, .., {value: ..}]`; where none matches, the method's own default holds."""
    blocks = [Block(item, place / i, ["match", "value"]) for i, item in enumerate(data)]
    cases = [(block.text("match", "*"), parse(block.get("value"), block.place / "value")) for block in blocks]
    if default is not REQUIRED and cases[-1][0] != "*":
        cases.append(("*", parse(default, place)))
    return Cases(tuple(cases))


def _curve(data: Any, place: Place, dial: Dial) -> Curve:
    rows = Block(data, place, ["rows"]).sequence("rows") if isinstance(data, Mapping) else [data]
    points = tuple(_points(row, place, dial) for row in rows)
    if not points or not all(points):
        raise RecipeError(f"{place}: an empty list; give one number, or control points from the first layer to the last")
    return Curve(points)


def _points(data: Any, place: Place, dial: Dial) -> tuple[float, ...]:
    values = data if isinstance(data, list) else [data]
    return tuple(float(number(value, place, low=dial.low, high=dial.high)) for value in values)


def _rule_data(rule: Rule) -> dict[str, Any]:
    knobs = {
        name: {source: curve.to_data() for source, curve in knob.items()} if isinstance(knob, Mapping)
        else knob.to_data() if isinstance(knob, Curve | Cases) else knob
        for name, knob in rule.knobs.items()
    }  # fmt: skip
    return {"match": rule.match, "method": rule.method, "sources": list(rule.sources), **knobs}


def _slices(block: Block, sources: tuple[str, ...]) -> tuple[Slice, ...]:
    if "slices" not in block:
        return ()
    place = block.place / "slices"
    parts = [_slice(item, place / i, sources) for i, item in enumerate(block.sequence("slices"))]
    on = tuple(part for part in parts if part is not None)
    if not on:
        raise RecipeError(f"{place}: no layer is left; let at least one slice be without `on: false`")
    return on


def _slice(data: object, place: Place, sources: tuple[str, ...]) -> Slice | None:
    """A slice, or None where it is switched off."""
    block = Block(data, place, ["layers", "source", "rules", "scale", "on"])
    models = ("base", *sources)
    source = block.text("source", None, among=models)
    given = block.get("layers")
    ranges = given if isinstance(given, Mapping) else dict.fromkeys([source] if source else models, given)
    layers = {str(name): _layers(item, place / "layers" / str(name)) for name, item in ranges.items()}
    for name in layers:
        if name not in models:
            raise RecipeError(f"{place / 'layers'}: {name!r} is not a model of this recipe{nearest(name, models)}")
    if not layers or len({end - first for first, end in layers.values()}) > 1:
        raise RecipeError(f"{place / 'layers'}: each model gives as many layers to a slice as the others; here they differ")
    if source and source not in layers:
        raise RecipeError(f"{place}: no layers are given for its source {source!r}; add them to `layers`")
    if source and "rules" in block:
        raise RecipeError(f"{place}: `source` copies one model, so `rules` have nothing to do; leave one of them out")
    copy = [{"match": "*", "method": "passthrough", "sources": [source]}] if source else []
    here = tuple(name for name in layers if name != "base")
    rules = (_rule(rule, place / "rules" / i, here) for i, rule in enumerate(block.sequence("rules", copy)))
    part = Slice(layers, tuple(rules), float(block.number("scale", 1.0, low=-1e6, high=1e6)))
    return part if block.flag("on", True) else None


def _layers(data: Any, place: Place) -> Layers:
    """`[first, end]`, the end not among them, or the number of one layer."""
    ends = data if isinstance(data, list) else [data, data + 1] if isinstance(data, int) and not isinstance(data, bool) else None
    if ends is None or len(ends) != 2:
        raise RecipeError(f"{place}: expected layers as [first, end], or one number; found {describe(data)}")
    block = Block({"first": ends[0], "end": ends[1]}, place, ["first", "end"])
    first, end = block.integer("first"), block.integer("end")
    if first >= end:
        raise RecipeError(f"{place}: no layer lies in [{first}, {end}]; the second number is that after the last layer")
    return int(first), int(end)


def _slice_data(part: Slice) -> dict[str, Any]:
    rules = {"rules": [_rule_data(rule) for rule in part.rules]} if part.rules else {}
    scale = {"scale": part.scale} if part.scale != 1 else {}
    return {"layers": {name: list(layers) for name, layers in part.layers.items()}, **rules, **scale}


def _context(block: Block) -> Context | None:
    if "context" not in block:
        return None
    inner = Block(block.get("context"), block.place / "context", list(Context.__dataclass_fields__))
    context = Context(
        rope_type=inner.text("rope_type", among=ROPE_TYPES),
        factor=float(inner.number("factor", low=1.0, high=1024.0)),
        beta_fast=inner.number("beta_fast", None, low=0.0),
        beta_slow=inner.number("beta_slow", None, low=0.0),
        attention_factor=inner.number("attention_factor", None, low=0.0),
    )
    if context.rope_type != "yarn" and (context.beta_fast or context.beta_slow or context.attention_factor):
        raise RecipeError(f"{inner.place}: beta_fast, beta_slow and attention_factor belong to rope_type yarn")
    if (context.beta_fast or 32.0) <= (context.beta_slow or 1.0):
        raise RecipeError(f"{inner.place}: beta_fast must be greater than beta_slow (defaults 32 and 1)")
    return context


def _heal(block: Block, sources: tuple[str, ...], root: Path | None) -> Heal | None:
    if "heal" not in block:
        return None
    inner = Block(block.get("heal"), block.place / "heal", list(Heal.__dataclass_fields__))
    place = inner.place / "teachers"
    teachers = {str(name): float(number(share, place / str(name), low=0.0)) for name, share in inner.mapping("teachers").items()}
    for name in teachers:
        if name not in ("base", *sources):
            raise RecipeError(f"{place}: {name!r} is not a model of this recipe{nearest(name, ('base', *sources))}")
    if not sum(teachers.values()):
        raise RecipeError(f"{place}: no teacher has a share above 0; give one, or leave `heal` out")
    return Heal(
        tokens=inner.integer("tokens", low=1),
        texts=_absolute(inner.text("texts"), root),
        teachers=teachers,
        mixture=inner.text("mixture", "shares", among=MIXTURES),
        learning_rate=float(inner.number("learning_rate", 3e-4, low=0.0)),
        temperature=float(inner.number("temperature", 1.0, low=0.05)),
    )


def _tokenizer(block: Block, sources: tuple[str, ...]) -> Tokenizer | None:
    """mergekit's block: `tokenizer: union`, or {source, tokens: {TOKEN: {source, force}}, pad_to_multiple_of}."""
    if "tokenizer" not in block:
        return None
    data, place = block.get("tokenizer"), block.place / "tokenizer"
    if "heal" in block:
        raise RecipeError(f"{place}: a merge with another vocabulary cannot be healed; merge first, and heal what comes out")
    inner = Block({"source": data} if isinstance(data, str) else data, place, list(Tokenizer.__dataclass_fields__))
    names = ("base", *sources)
    tokens = {
        str(token): _token_row(row, place / "tokens" / str(token), names) for token, row in inner.mapping("tokens", {}).items()
    }
    multiple = inner.integer("pad_to_multiple_of", None, low=1)
    return Tokenizer(inner.text("source", among=("union", *names)), tokens, multiple)


def _token_row(data: object, place: Place, names: tuple[str, ...]) -> TokenRow:
    block = Block(data, place, ["source", "force"])
    source, force = block.get("source"), bool(block.flag("force", False))
    if not isinstance(source, Mapping):
        return TokenRow(block.text("source", among=names), force)
    inner = Block(source, place / "source", ["kind", "model", "token", "token_id"])
    if inner.text("kind", among=("zero", "model_token")) == "zero":
        return TokenRow(None, force)
    token, row = inner.text("token", None), inner.integer("token_id", None)
    if (token is None) == (row is None):
        raise RecipeError(f"{inner.place}: a model_token has either a `token` or a `token_id`")
    return TokenRow(inner.text("model", among=names), force, token, row)


def _row_data(row: TokenRow) -> dict[str, Any]:
    told = {"token": row.token} if row.token is not None else {"token_id": row.token_id} if row.token_id is not None else {}
    source = (
        {"kind": "zero"} if row.source is None else {"kind": "model_token", "model": row.source, **told} if told else row.source
    )
    return {"source": source, "force": row.force}
