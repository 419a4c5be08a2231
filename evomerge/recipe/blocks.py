"""The other blocks of a recipe read strictly: sources, slices, context, heal, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.document import Block, Place, describe, nearest, number
from evomerge.errors import RecipeError
from evomerge.recipe.parts import AUTO, HUB_ID, MIXTURES, ROPE_TYPES, Context, Heal, Layers, Slice, Source, Tokenizer, TokenRow
from evomerge.recipe.rules import read_rule, rule_data


def read_source(data: object, place: Place, root: Path | None) -> Source:
    rest: dict[str, str] = {}
    if isinstance(data, Mapping):
        block = Block(data, place, list(Source.__dataclass_fields__))
        rest = {key: block.text(key) for key in ("adapter", "fisher", "gram") if key in block}
        data = block.text("model")
    if not isinstance(data, str):
        raise RecipeError(f"{place}: expected the path of a model, found {describe(data)}")
    return Source(_absolute(data, root), **{key: _absolute(path, root) for key, path in rest.items()})


def _absolute(location: str, root: Path | None) -> str:
    """A path from where the recipe lies; what is no path there and has the form of a hub id is one."""
    if location.startswith("zoo:") or root is None or Path(location).is_absolute():
        return location
    if HUB_ID.match(location) and not (root / location).exists():
        return location
    try:
        return str((root / location).resolve())
    except (RuntimeError, OSError):  # a link that leads back to itself is refused where the model is opened
        return str((root / location).absolute())


def read_chat_template(block: Block) -> str | None:
    """Jinja that turns a conversation into text, or `auto`. Raises RecipeError where it is neither."""
    text: str | None = block.text("chat_template", None)
    if text is not None and text != AUTO and ("{" not in text or len(text) < 20):
        raise RecipeError(
            f"{block.place / 'chat_template'}: {text!r} is no template; write its Jinja, or auto: the models' commonest"
        )
    return text


def read_slices(block: Block, sources: tuple[str, ...]) -> tuple[Slice, ...]:
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
    rules = (read_rule(rule, place / "rules" / i, here) for i, rule in enumerate(block.sequence("rules", copy)))
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


def slice_data(part: Slice) -> dict[str, Any]:
    rules = {"rules": [rule_data(rule) for rule in part.rules]} if part.rules else {}
    scale = {"scale": part.scale} if part.scale != 1 else {}
    return {"layers": {name: list(layers) for name, layers in part.layers.items()}, **rules, **scale}


def read_context(block: Block) -> Context | None:
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


def read_heal(block: Block, sources: tuple[str, ...], root: Path | None) -> Heal | None:
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


def read_tokenizer(block: Block, sources: tuple[str, ...]) -> Tokenizer | None:
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
