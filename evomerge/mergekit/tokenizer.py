"""mergekit's two ways to say whose vocabulary a merged model has, and ours, which has the form of the second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.document import Block
from evomerge.errors import RecipeError
from evomerge.mergekit.models import Models
from evomerge.recipe import Tokenizer

BY_NAME = ("union", "base")


def from_blocks(file: Block, models: Models) -> Any:
    """Our `tokenizer` from `tokenizer_source` or `tokenizer`; None where the file names neither."""
    if "tokenizer" in file and "tokenizer_source" in file:
        raise RecipeError(f"{file.place}: tokenizer and tokenizer_source say the same; leave one of them out")
    if "tokenizer_source" in file:
        return _owner(file.get("tokenizer_source"), file, models, "tokenizer_source")
    if "tokenizer" not in file:
        return None
    block = Block(file.get("tokenizer"), file.place / "tokenizer", ["source", "tokens", "pad_to_multiple_of"])
    found: dict[str, Any] = {"source": _owner(block.get("source", "union"), block, models, "source")}
    tokens = block.mapping("tokens", {})
    if tokens:
        found["tokens"] = {str(token): _row(row, block, str(token), models) for token, row in tokens.items()}
    if "pad_to_multiple_of" in block:
        found["pad_to_multiple_of"] = block.integer("pad_to_multiple_of", low=1)
    return found


def _owner(data: object, block: Block, models: Models, key: str) -> str:
    return str(data) if data in BY_NAME else models.name(models.read(data, block.place / key))


def _row(data: object, tokenizer: Block, token: str, models: Models) -> dict[str, Any]:
    """Of one token: the model whose row it takes, another token's row, or zeros."""
    block = Block(data, tokenizer.place / "tokens" / token, ["source", "force"])
    source, place = block.get("source", None), block.place / "source"
    force = {"force": True} if block.flag("force", False) else {}
    if source is None:
        raise RecipeError(f"{place}: whose row {token!r} takes is missing; a model, or {{kind: zero}}")
    if not isinstance(source, Mapping) or "kind" not in source:
        return {"source": models.name(models.read(source, place)), **force}
    if source.get("kind") == "zero":
        return {"source": {"kind": "zero"}, **force}
    inner = Block(source, place, ["kind", "model", "token", "token_id"])
    owner = models.name(models.read(inner.get("model"), place / "model"))
    return {"source": {**inner.data, "model": owner}, **force}


def to_block(tokenizer: Tokenizer, models: Mapping[str, str]) -> dict[str, Any]:
    """mergekit's `tokenizer` block; `models` are the paths of our sources."""
    data = tokenizer.to_data()
    data["source"] = models[data["source"]] if data["source"] in models and data["source"] != "base" else data["source"]
    if "tokens" in data:
        data["tokens"] = {token: {**row, "source": _named(row["source"], models)} for token, row in data["tokens"].items()}
    return {"tokenizer": data}


def _named(source: Any, models: Mapping[str, str]) -> Any:
    if isinstance(source, str):
        return models[source]
    return {**source, "model": models[source["model"]]} if "model" in source else source
