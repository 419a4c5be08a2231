"""Candidates healed: what healing needs beside the recipe (a live module, teachers, rows of tokens) is made once and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evomerge.candidate import live
from evomerge.candidate.stream import Candidate, Sources, materialize
from evomerge.errors import RecipeError
from evomerge.healing.distill import heal
from evomerge.healing.mixture import Teacher
from evomerge.healing.texts import rows
from evomerge.recipe import Heal, Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

KEPT = 2  # healed candidates that stay in memory: training is dearer than merging
LONGEST_ROW = 512


class Healer:
    """Heals recipes over the same sources; `module` is borrowed where somebody has a live one already."""

    def __init__(self, sources: Sources, module: PreTrainedModel | None = None) -> None:
        self.sources = sources
        self.trained = 0  # how often the live module was trained: what it held before is gone then
        self._module = module
        self._healed: OrderedDict[str, Candidate] = OrderedDict()
        self._teachers: dict[str, Teacher] = {}
        self._rows: dict[tuple[str, int, int], Tensor] = {}
        self._tokenizers: dict[str, Any] = {}

    def __call__(self, recipe: Recipe) -> Candidate:
        """The healed candidate of a recipe; the same recipe gives the same bytes, on one thread."""
        key = recipe.key(self.sources.fingerprints(recipe))
        if key not in self._healed:
            self._healed[key] = self._heal(recipe, key)
        self._healed.move_to_end(key)
        while len(self._healed) > KEPT:
            self._healed.popitem(last=False)
        return self._healed[key]

    def _heal(self, recipe: Recipe, key: str) -> Candidate:
        if recipe.heal is None:
            raise RecipeError("heal: this recipe has no `heal` block")
        self.trained += 1
        plain = materialize(replace(recipe, heal=None), self.sources)
        module = self.module(recipe, plain.config)
        live.load(plain, module)
        wanted = {name for name, share in recipe.heal.teachers.items() if share > 0}
        heal(
            module, recipe.heal, {name: self._teacher(recipe, name) for name in sorted(wanted)}, self._tokens(recipe.heal, recipe)
        )
        return live.snapshot(module, plain, key)

    def module(self, recipe: Recipe, config: Mapping[str, Any] | None = None) -> PreTrainedModel:
        """The live module that is trained: one of its own for a stack of another depth."""
        if self._module is None:
            base = self.sources.checkpoint(recipe.base.location)
            if not base.config:
                raise RecipeError(f"heal: {base.path} has no config.json; only transformers models can be healed")
            self._module = live.module(base.config, device=self.sources.device)
        if config is None or live.same_model(live.read_config(config), self._module.config):
            return self._module
        return live.module(config, device=self.sources.device)

    def _teacher(self, recipe: Recipe, name: str) -> Teacher:
        location = (recipe.base if name == "base" else recipe.sources[name]).location
        if location not in self._teachers:
            self._teachers[location] = Teacher(self.parent(location))
        return self._teachers[location]

    def parent(self, location: str) -> PreTrainedModel:
        """A parent as a live module of its own."""
        checkpoint = self.sources.checkpoint(location)
        module = live.module(checkpoint.config, device=self.sources.device)
        tensors = {name: self.sources.read(location, name) for name in checkpoint.tensors}
        live.load(Candidate.of(checkpoint.config, tensors, location), module)
        return module

    def _tokens(self, settings: Heal, recipe: Recipe) -> Tensor:
        place = (settings.texts, settings.tokens, recipe.seed)
        if place not in self._rows:
            length = int(self.sources.checkpoint(recipe.base.location).config.get("max_position_embeddings", LONGEST_ROW))
            self._rows[place] = rows(settings, self.tokenizer(recipe), min(length, LONGEST_ROW), recipe.seed)
        return self._rows[place]

    def tokenizer(self, recipe: Recipe) -> Any:
        """The base's tokenizer."""
        from transformers import AutoTokenizer

        folder = str(self.sources.checkpoint(recipe.base.location).path)
        if folder not in self._tokenizers:
            self._tokenizers[folder] = AutoTokenizer.from_pretrained(folder)
        return self._tokenizers[folder]
