"""Which template turns a conversation into text under the merged model: its own, one that is given, or the models' commonest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evomerge.candidate.checkpoint import Checkpoint, read_json
from evomerge.recipe import AUTO

FILE = "chat_template.jinja"  # readers prefer it to what stands in tokenizer_config.json


def chat_files(asked: str | None, models: Iterable[Checkpoint]) -> dict[str, str]:
    """The file of the template that a recipe asks for; none where it asks for nothing, or for the commonest of none."""
    if asked != AUTO:
        return {FILE: asked} if asked else {}
    found = Counter(template for model in models if (template := template_of(model.path)))
    return {FILE: found.most_common(1)[0][0]} if found else {}


def template_of(folder: Path) -> str | None:
    """The template beside a model, without space around it. Raises CheckpointError where its file is no JSON."""
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8").strip()
    config = folder / "tokenizer_config.json"
    told: Any = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(told, list):  # several by name
        told = {each.get("name"): each.get("template") for each in told if isinstance(each, Mapping)}.get("default")
    return told.strip() if isinstance(told, str) else None
