"""What a search must beat: the parents, their average, and every method at settings somebody would try by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from evomerge.document import Place
from evomerge.recipe import COUNTS, METHOD_KNOBS, Recipe
from evomerge.space import Space

LAMBDAS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
TIES_GRID = tuple((density, scale) for density in (0.2, 0.5, 0.8) for scale in (0.3, 0.6, 1.0))
# The settings that the methods' papers print first: Yadav et al. 2023 (TIES), Yu et al. 2024 (DARE), Ilharco et al. 2023
PUBLISHED: dict[str, dict[str, Any]] = {
    "ties": {"weight": 1.0, "density": 0.2, "lambda": 1.0},
    "dare_linear": {"weight": 1.0, "drop_rate": 0.9, "lambda": 1.0},
    "dare_ties": {"weight": 1.0, "drop_rate": 0.9, "lambda": 1.0},
    **{method: {} for method in ("model_stock", "karcher", "ram", "ramplus_tl")},  # nothing to set, or their own defaults
}


def parents(space: Space) -> dict[str, Recipe]:
    """The base and every source as recipes that copy them."""
    names = ["base", *space.template["sources"]]
    return {name: _everywhere(space, {"method": "passthrough", "sources": [name]}) for name in names}


def baselines(space: Space) -> dict[str, Recipe]:
    """Name and recipe of every baseline that is not a parent, in the order in which they run.

    Where the space extends the context or heals, so do two of them, at the space's own start: else a search would be credited
    with what needs no merging.
    """
    found = {name: _everywhere(space, rule) for name, rule in _rules(space)}
    plain = {"base": parents(space)["base"], "average": found["average"]}
    start = space.build(space.start())
    if start.context:
        found |= {f"{name}-{start.context.rope_type}": replace(recipe, context=start.context) for name, recipe in plain.items()}
    if start.heal:
        found |= {f"{name}-healed": replace(r, context=start.context, heal=start.heal) for name, r in plain.items()}
    return found


def _rules(space: Space) -> Iterator[tuple[str, dict[str, Any]]]:
    """A name says method, density where there is one, and λ."""
    yield "average", {"method": "linear", "weight": 1.0}
    for scale in LAMBDAS:
        yield f"task_arithmetic-{scale:g}", {"method": "task_arithmetic", "weight": 1.0, "lambda": scale}
    for density, scale in TIES_GRID:
        yield f"ties-{density:g}-{scale:g}", {"method": "ties", "weight": 1.0, "density": density, "lambda": scale}
    for method in sorted(_methods(space.template) & set(PUBLISHED)):
        rule = {"method": method, **PUBLISHED[method]}
        fits = len(space.template["sources"]) >= COUNTS.get(method, (1, 1))[0]
        if fits and method != "ties":  # its published setting is a point of the grid
            yield f"{method}-published", rule


def _everywhere(space: Space, rule: Mapping[str, Any]) -> Recipe:
    fixed = {key: space.template[key] for key in ("base", "sources", "dtype", "seed") if key in space.template}
    return Recipe.from_data({**fixed, "rules": [{"match": "*", **rule}]}, Place("baseline"), space.root)


def _methods(tree: Any) -> set[str]:
    """Every method named anywhere in a space."""
    if isinstance(tree, list):
        return set().union(*(_methods(item) for item in tree))
    if not isinstance(tree, Mapping):
        return set()
    own = {tree["method"]} if tree.get("method") in METHOD_KNOBS else set()
    return own.union(*(_methods(item) for item in tree.values()))
