"""mergekit's files and ours, both ways: its YAML in and out, and the genomes of mergekit-evolve as search spaces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge.document import Place, dump_yaml, read_yaml
from evomerge.errors import RecipeError
from evomerge.mergekit.genome import from_genome
from evomerge.mergekit.read import from_mergekit
from evomerge.mergekit.write import expressed, to_mergekit
from evomerge.recipe import Recipe

__all__ = ["convert", "expressed", "from_genome", "from_mergekit", "read_recipe", "to_mergekit"]


def read_recipe(path: str | Path) -> tuple[Recipe, list[str]]:
    """The recipe in a file of ours or of mergekit's, and a line for each thing that is read differently from mergekit."""
    data = read_yaml(path)
    if isinstance(data, Mapping) and "genome" in data:
        raise RecipeError(
            f"{path}: is a genome of mergekit-evolve; `evomerge convert {path} --to evomerge` makes a search space of it"
        )
    if isinstance(data, Mapping) and "merge_method" in data:
        return from_mergekit(data, Place(str(path)), Path(path).absolute().parent)
    return Recipe.read(path), []


def convert(path: str | Path, to: str) -> tuple[str, list[str]]:
    """A file in the other's words, `to` mergekit or evomerge, and what is read differently, a line each."""
    data = read_yaml(path)
    if to == "evomerge" and isinstance(data, Mapping) and "genome" in data:
        experiment, notes = from_genome(data, Place(str(path)), Path(path).absolute().parent)
        return dump_yaml(experiment), notes
    recipe, notes = read_recipe(path)
    return (to_mergekit(recipe), notes) if to == "mergekit" else (recipe.to_yaml(), notes)
