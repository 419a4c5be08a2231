"""A mergekit file as a recipe, and a line for each thing that is read differently."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.document import Block, Place, nearest
from evomerge.errors import RecipeError
from evomerge.mergekit.models import Model, Models, layer_count
from evomerge.mergekit.modules import layers_of, patterns
from evomerge.mergekit.parameters import EITHER, OVER_MODELS, PARAMETERS
from evomerge.mergekit.settings import Level, Reader
from evomerge.mergekit.tokenizer import from_blocks
from evomerge.recipe import DTYPES, Recipe

TOP = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template",
)  # fmt: skip
SHIPPED = ("alpaca", "chatml", "exaone", "llama3", "mistral")  # chat templates by name
COARSE = ("bfloat16", "float16")
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


@dataclass(frozen=True)
class Entry:
    """A model in a slice: its layers, and its parameters there."""

    model: Model
    layers: tuple[int, int] | None
    level: Level
    place: Place


@dataclass(frozen=True)
class Piece:
    """A slice: its models, its blocks of parameters from the nearest on, and what its deltas are taken from."""

    entries: list[Entry]
    levels: list[Level]
    base: Model | None

    @property
    def leading(self) -> Model:
        """Whose config and tokenizer a file without a base has."""
        models = [entry.model for entry in self.entries]
        return self.base if self.base in models else models[0]


def from_mergekit(data: Mapping[str, Any], place: Place, root: Path | None = None) -> tuple[Recipe, list[str]]:
    """The recipe of a mergekit file, and what is read differently, a line each. Raises RecipeError or DocumentError."""
    file = _File(Block(data, place, TOP), Models(root))
    recipe = Recipe.from_data(file.to_data(), place)
    return recipe, list(file.notes())


@dataclass
class _File:
    """A mergekit file on its way to a recipe."""

    block: Block
    models: Models
    reader: Reader = field(init=False)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        method = self.block.text("merge_method", among=tuple(PARAMETERS))
        self.reader = Reader(method)
        named = self.block.get("base_model", None)
        self.base = None if named is None else self.models.read(named, self.place / "base_model")

    @property
    def place(self) -> Place:
        return self.block.place

    @property
    def method(self) -> str:
        return self.reader.method

    def to_data(self) -> dict[str, Any]:
        modules = list(self._modules())
        names = [name for name, _, _ in modules]
        alone = names == ["default"]
        pieces = {name: self._pieces(inner, levels) for name, inner, levels in modules}
        leading = self.base or next(iter(pieces.values()))[0].leading
        self.models.names[leading] = "base"
        matches = {"default": "*"} if alone else patterns(names, self.place / "modules", leading.path)
        stacked = self._stacked(pieces, matches)
        merged = {name: [self._merged(piece, whole=name != stacked) for piece in parts] for name, parts in pieces.items()}
        tokenizer = self._tokenizer()
        if not alone:
            told = ", ".join(f"{name} is {'the rest' if match == '*' else match}" for name, match in matches.items())
            self.said.append(f"modules: by the names of tensors: {told}")
        body = self._body(merged, matches, stacked)
        return {
            "base": leading.to_data(), "sources": self._sources(leading), **body, "dtype": self._dtype(), **tokenizer,
        }  # fmt: skip

    def _sources(self, leading: Model) -> dict[str, Any]:
        """The models beside the base; a copy of one model has it as its own source."""
        name = Path(leading.adapter or leading.path).name
        return self.models.sources() or {name if name != "base" else "model": leading.to_data()}

    # --- models, slices or the one module: all become slices; of several modules each becomes rules for its tensors

    def _modules(self) -> Iterator[tuple[str, Block, list[Level]]]:
        """Each module's name, its block, and the blocks of parameters around it; `default` where the file has no modules."""
        given = [key for key in ("models", "slices", "modules") if self.block.get(key, None)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise RecipeError(f"{self.place}: exactly one of models, slices and modules says what is merged; here is {found}")
        top = Level.of(self.block, self.method)
        if given != ["modules"]:
            yield "default", self.block, [top]
            return
        for name, module in self.block.mapping("modules").items():
            inner = Block(module, self.place / "modules" / str(name), ["slices", "models", "parameters"])
            if ("slices" in inner) == ("models" in inner):
                raise RecipeError(f"{inner.place}: a module has either models or slices")
            yield str(name), inner, [Level.of(inner, self.method), top]

    def _pieces(self, inner: Block, levels: list[Level]) -> list[Piece]:
        return [self._slice(part, levels, listed="models" in inner) for part in self._parts(inner)]

    def _stacked(self, pieces: Mapping[str, list[Piece]], matches: Mapping[str, str]) -> str | None:
        """The module whose layers change in number or place; of the others every slice is all layers of its models."""
        found = [
            name for name, parts in pieces.items() if len(parts) > 1 or not _is_whole(parts[0].entries, _counting(name, matches))
        ]
        if len(found) > 1:
            raise RecipeError(f"{self.place / 'modules'}: {' and '.join(found)} are stacks of slices; one tower can be stacked")
        return found[0] if found else None

    def _body(self, merged: Mapping[str, Any], matches: Mapping[str, str], stacked: str | None) -> dict[str, Any]:
        """Rules for the tensors of each module, and the slices of one; its own rule says only which tensors they are about."""
        rules = [
            {**merged[name][0]["rules"][0], "match": match, **({} if stacked in (None, name) else {"stacked": False})}
            for name, match in matches.items()
            if (name, match) != (stacked, "*")
        ]
        return {"rules": rules, **({"slices": merged[stacked]} if stacked else {})}

    def _parts(self, inner: Block) -> Iterator[Block]:
        if "models" not in inner:
            for i, part in enumerate(inner.sequence("slices")):
                yield Block(part, inner.place / "slices" / i, ["sources", "base_model", "residual_weight", "parameters"])
            return
        yield Block({"sources": inner.sequence("models")}, inner.place, ["sources"])

    def _slice(self, part: Block, levels: Sequence[Level], *, listed: bool) -> Piece:
        if "residual_weight" in part:
            raise RecipeError(f"{part.place}: mergekit 0.1.5 does nothing with 'residual_weight'; leave it out")
        base = self.models.read(part.get("base_model"), part.place / "base_model") if "base_model" in part else self.base
        key = "models" if listed else "sources"
        entries = [self._entry(item, part.place / key / i, ranged=not listed) for i, item in enumerate(part.sequence("sources"))]
        if listed and self.base and self.base not in [entry.model for entry in entries]:
            entries.append(Entry(self.base, None, Level({}, part.place), part.place))
        models = [entry.model for entry in entries]
        if twice := next((entry for i, entry in enumerate(entries) if entry.model in models[:i]), None):
            raise RecipeError(
                f"{twice.place}: {twice.model.path} stands twice in one slice, with the same parameters in mergekit"
            )
        if "base_model" in part and self.method not in OVER_MODELS and base not in models:
            raise RecipeError(f"{part.place / 'base_model'}: it is none of the slice's sources; list its layers with theirs")
        if "base_model" in part and self.method in OVER_MODELS:
            self.said.append(f"{part.place / 'base_model'}: changes nothing: {self.method} uses none")
        own = [] if listed else [Level.of(part, self.method)]
        return Piece(entries, [*own, *levels], base)

    def _entry(self, data: object, place: Place, *, ranged: bool) -> Entry:
        block = Block(data, place, ["model", "parameters", *["layer_range"] * ranged])
        layers = None
        if ranged:
            ends = block.sequence("layer_range")
            if len(ends) != 2 or not all(isinstance(end, int) for end in ends):
                raise RecipeError(f"{place / 'layer_range'}: expected [first, end], the number after the last layer")
            layers = (ends[0], ends[1])
        return Entry(self.models.read(block.get("model"), place / "model"), layers, Level.of(block, self.method), place)

    # --- a slice's rule

    def _merged(self, part: Piece, *, whole: bool) -> dict[str, Any]:
        named = {self.models.name(entry.model): entry for entry in part.entries}
        over_models = self.method in OVER_MODELS or (self.method in EITHER and part.base is None)
        if part.base is None and not over_models:
            raise RecipeError(f"{self.place}: {self.method} adds to a base; name it as base_model")
        base = "base" if part.base is None or over_models else self.models.name(part.base)
        sources = [name for name in named if over_models or name != base]
        own = {name: [named[name].level, *part.levels] for name in sources}
        knobs = {**self.reader.knobs(part.levels, own), **self._variants(over_models)}
        other = {"base": base} if base != "base" else {}
        rule = {"match": "*", "method": self.method, "sources": sources, **other, **knobs}
        if base in named and base not in sources and named[base].level.data:
            given = ", ".join(named[base].level.data)
            self.said.append(f"{named[base].level.place}: {given} of the base itself: {self.method} uses none, left out")
        layers = {} if whole else {name: list(entry.layers or ()) for name, entry in named.items()}
        return {"layers": layers, "rules": [rule]}

    def _variants(self, over_models: bool) -> dict[str, str]:
        between = {"between": "models" if over_models else "deltas"} if self.method in EITHER else {}
        return {**between, **({"between": "models"} if self.method == "karcher" else {})}

    # --- what is written

    def _dtype(self) -> str | None:
        for key in ("dtype", "out_dtype"):
            name = self.block.text(key, None)
            if name is not None and name.removeprefix("torch.") not in DTYPES:
                raise RecipeError(f"{self.place / key}: {name!r} cannot be written{nearest(name, DTYPES)}")
        dtype, out = (str(self.block.text(key, "")).removeprefix("torch.") for key in ("dtype", "out_dtype"))
        if dtype in COARSE:
            self.said.append(f"dtype: {dtype} there at every step, here computed in float32 and rounded once")
        if dtype == "float64":
            self.said.append("dtype: float64 there, here float32 unless a model itself is float64")
        return out or dtype or None

    def _tokenizer(self) -> dict[str, Any]:
        template = {"chat_template": self._chat_template()} if self.block.get("chat_template", None) else {}
        found = from_blocks(self.block, self.models)
        if found is not None and self.base is None and "base" in (found, found["source"] if isinstance(found, dict) else ""):
            self.said.append("tokenizer: the base is the first model, none is named")
        return template if found is None else {**template, "tokenizer": found}

    def _chat_template(self) -> str:
        text: str = self.block.text("chat_template")
        if text in SHIPPED:
            raise RecipeError(
                f"{self.place / 'chat_template'}: {text!r} is a file of mergekit's own; write the template itself, or auto"
            )
        return text

    def notes(self) -> Iterator[str]:
        yield from self.said
        if self.reader.gradients:
            yield "gradients: final norm and lm_head take the last value here, in mergekit the first"
        if self.base is None:
            yield f"base_model: none is named; config and tokenizer are those of {next(iter(self.models.names)).path}"
        if self.method in RANDOM:
            yield f"{self.method}: random masks are our own, a function of `seed` and the tensor's name"
        for name, why in self.reader.idle.items():
            yield f"{name}: {why}"


def _is_whole(entries: Sequence[Entry], count: Callable[[str], int | None]) -> bool:
    """Whether a slice is all layers of all its models: then the recipe needs no slices."""
    return all(entry.layers is None or entry.layers == (0, count(entry.model.path)) for entry in entries)


def _counting(name: str, matches: Mapping[str, str]) -> Callable[[str], int | None]:
    """What tells of the model at a path how many layers a module of it has."""
    if len(matches) == 1:
        return layer_count
    before = list(itertools.takewhile(lambda match: match != matches[name], matches.values()))
    return lambda location: layers_of(matches[name], before, location)
