"""The models of a recipe as its merge sees them: in a text tower where the base has one, with one vocabulary where it asks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.towers import in_towers
from evomerge.candidate.vocab import Alignment, align, realigned
from evomerge.recipe import Recipe


def views(recipe: Recipe, models: Mapping[str, Checkpoint]) -> tuple[dict[str, Checkpoint], Alignment | None]:
    """Base and sources by name, the base first, and how their vocabularies were aligned. From headers alone."""
    found = in_towers(models)
    if recipe.tokenizer is None:
        return found, None
    alignment = align(recipe.tokenizer, found)
    return dict(realigned(alignment)), alignment


def stood_for(recipe: Recipe) -> tuple[Recipe, dict[str, str]]:
    """The recipe over stand-ins for its models, and the name of each: to be merged like any other."""
    locations = [recipe.base.location, *([name, source.location] for name, source in recipe.sources.items())]
    what = json.dumps([locations, recipe.tokenizer and recipe.tokenizer.to_data()])
    mark = hashlib.sha256(what.encode()).hexdigest()[:16]
    names = {role: f"{role}#{mark}" for role in ("base", *recipe.sources)}
    sources = {role: replace(source, model=names[role], adapter=None) for role, source in recipe.sources.items()}
    return replace(recipe, base=replace(recipe.base, model=names["base"], adapter=None), sources=sources, tokenizer=None), names
