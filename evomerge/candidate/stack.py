"""Layers of any model in any order: what each tensor of a stack is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from evomerge.candidate.checkpoint import Checkpoint, TensorInfo
from evomerge.candidate.layers import layer_count
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import Recipe, Slice

# What the parts of a block are called that write to the residual stream: a slice's `scale` multiplies them
WRITERS = frozenset(
    ("o_proj", "out_proj", "c_proj", "down_proj", "dense", "dense_4h_to_h", "wo", "w2", "fc2", "fc_out", "out_lin", "lin2")
)
AFTERWARDS = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_ffn_norm")  # norms behind a block undo any scale of it

Outputs = Callable[[Checkpoint], Iterable[str]]


@dataclass(frozen=True)
class Part:
    """One tensor of the merged model: where it stands, and where it comes from."""

    name: str
    info: TensorInfo
    depth: float  # between the first layer of the model, 0, and the last, 1
    slice: int | None = None
    inner: float = 0.0  # the same within its slice
    origins: Mapping[str, str] | None = None  # model -> the name of the tensor there
    scale: float = 1.0


def numbered(name: str) -> tuple[str, int] | None:
    """The stack that a tensor belongs to and its layer in it, as (`model.layers`, 3): by the first number in its name."""
    found = re.match(r"(?:(.*?)\.)?(\d+)(?:\.|$)", name)
    return (found[1] or "", int(found[2])) if found else None


def is_embedding(name: str) -> bool:
    """Whether a tensor outside the layers comes before them."""
    return bool(re.search(r"emb|wte|wpe|^shared\.", name)) and "embed_out" not in name


class Depths:
    """Where a tensor stands between the first layer (0) and the last (1), read from the first number in its name."""

    def __init__(self, names: Iterable[str]) -> None:
        self._last: dict[str, int] = {}
        for name in names:
            if found := numbered(name):
                stack, layer = found
                self._last[stack] = max(layer, self._last.get(stack, 0))

    @property
    def layers(self) -> int:
        """Layers of the deepest stack."""
        return max(self._last.values(), default=0) + 1

    def of(self, name: str) -> float:
        if found := numbered(name):
            stack, layer = found
            return layer / max(self._last[stack], 1)
        return 0.0 if is_embedding(name) else 1.0


def stack(recipe: Recipe, models: Mapping[str, Checkpoint], outputs: Outputs) -> list[Part]:
    """The tensors of a recipe with slices, in the order of their names.

    Raises RecipeError for a layer that a model does not have, CheckpointError where layers that are to be merged differ.
    """
    names = {role: list(outputs(model)) for role, model in models.items()}
    towers = towers_of(recipe, models, names)
    total = sum(part.count for part in recipe.slices)
    parts = [*_outside(recipe, models, towers), *_beside(recipe, models, names["base"])]
    offset = 0
    for i, part in enumerate(recipe.slices):
        for step in range(part.count):
            depths = (offset + step) / max(total - 1, 1), step / (part.count - 1) if part.count > 1 else 1.0
            parts += _layer(i, part, step, offset + step, depths, towers)
        offset += part.count
    return sorted(parts, key=lambda part: part.name)


def stacked_tower(recipe: Recipe, base: Checkpoint, outputs: Outputs) -> str:
    """What comes before the numbers of the layers that a recipe's slices are about."""
    return towers_of(recipe, {"base": base}, {"base": list(outputs(base))})["base"].prefix


def towers_of(recipe: Recipe, models: Mapping[str, Checkpoint], names: Mapping[str, Iterable[str]]) -> dict[str, Tower]:
    """Of each model the tower that is stacked."""
    return {role: Tower.of(role, models[role], filter(recipe.stacks, names[role])) for role in names}


@dataclass(frozen=True)
class Tower:
    """The layers of a model: for each the tensors by what follows its number in their names."""

    role: str
    prefix: str
    layers: Mapping[int, Mapping[str, str]]
    outside: tuple[str, ...]
    model: Checkpoint

    @classmethod
    def of(cls, role: str, model: Checkpoint, names: Iterable[str]) -> Tower:
        """The tower of as many layers as the config announces, the largest of several, among the tensors of these names."""
        names = list(names)
        stacks: dict[str, dict[int, dict[str, str]]] = {}
        for name in names:
            if found := numbered(name):
                rest = name.removeprefix(f"{found[0]}.{found[1]}" if found[0] else str(found[1]))
                stacks.setdefault(found[0], {}).setdefault(found[1], {})[rest] = name
        count = layer_count(model.config)
        fitting = [prefix for prefix, layers in stacks.items() if len(layers) == count] or list(stacks)
        if not fitting:
            raise CheckpointError(f"{model.path}: {role!r} has no numbered layers to stack; leave `slices` out")
        prefix = max(
            fitting, key=lambda p: sum(model.tensors[n].elements for layer in stacks[p].values() for n in layer.values())
        )
        own = {name for layer in stacks[prefix].values() for name in layer.values()}
        return cls(role, prefix, stacks[prefix], tuple(name for name in names if name not in own), model)

    def layer(self, index: int, place: str) -> Mapping[str, str]:
        if index not in self.layers:
            raise RecipeError(
                f"{place}: {self.role!r} has no layer {index}, its layers are 0 to {max(self.layers)} ({self.model.path})"
            )
        return self.layers[index]


def _layer(
    i: int, part: Slice, step: int, index: int, depths: tuple[float, float], towers: Mapping[str, Tower]
) -> Iterator[Part]:
    found = {role: towers[role].layer(first + step, f"slices[{i}].layers.{role}") for role, (first, _) in part.layers.items()}
    (leader, names), prefix = next(iter(found.items())), towers["base"].prefix
    for role, others in found.items():
        if odd := sorted(names.keys() ^ others.keys()):
            has, lacks = (role, leader) if odd[0] in others else (leader, role)
            raise CheckpointError(
                f"slices[{i}]: layer {part.layers[has][0] + step} of {has!r} has {odd[0].lstrip('.')!r}, layer"
                f" {part.layers[lacks][0] + step} of {lacks!r} has not; only layers of one kind can be merged"
            )
    if part.scale != 1:
        _check_scale(i, names)
    for rest in names:
        origins = {role: layer[rest] for role, layer in found.items()}
        info = _same(f"slices[{i}]", origins, {role: tower.model for role, tower in towers.items()})
        scale = part.scale if writes(rest) else 1.0
        out = f"{prefix}.{index}{rest}" if prefix else f"{index}{rest}"
        yield Part(out, info, depths[0], i, depths[1], origins, scale)


def _outside(recipe: Recipe, models: Mapping[str, Checkpoint], towers: Mapping[str, Tower]) -> Iterator[Part]:
    """What lies before the layers belongs to the first slice, what comes after them to the last."""
    for name in towers["base"].outside:
        i = 0 if is_embedding(name) else len(recipe.slices) - 1
        roles = [role for role in recipe.slices[i].layers if name in models[role].tensors]
        if missing := [role for role in recipe.slices[i].layers if role not in roles]:
            raise CheckpointError(
                f"{models[missing[0]].path}: {missing[0]!r} has no tensor {name!r}, and slices[{i}] takes it from there"
            )
        origins = dict.fromkeys(roles, name)
        depth = 0.0 if is_embedding(name) else 1.0
        yield Part(name, _same(f"slices[{i}]", origins, models), depth, i, depth, origins)


def _beside(recipe: Recipe, models: Mapping[str, Checkpoint], names: Iterable[str]) -> Iterator[Part]:
    """What the slices are not about, from every model that has it, at its depth in a tower of its own."""
    aside = [name for name in names if not recipe.stacks(name)]
    depths = Depths(aside)
    for name in aside:
        origins = {role: name for role, model in models.items() if name in model.tensors}
        yield Part(name, _same("rules", origins, models), depths.of(name), origins=origins)


def _same(place: str, origins: Mapping[str, str], models: Mapping[str, Checkpoint]) -> TensorInfo:
    """What is said of a tensor by all models that give it; they must agree on its shape."""
    infos = {role: models[role].tensors[name] for role, name in origins.items()}
    (leader, first), *rest = infos.items()
    for role, info in rest:
        if info.shape != first.shape:
            raise CheckpointError(
                f"{place}: {origins[role]!r} has the shape {list(info.shape)} in {role!r}, {origins[leader]!r}"
                f" {list(first.shape)} in {leader!r}; only tensors of one shape can be merged"
            )
    return first


def writes(rest: str) -> bool:
    """Whether a tensor of a layer writes to the residual stream, by its name."""
    return not WRITERS.isdisjoint(rest.split("."))


def _check_scale(i: int, names: Mapping[str, str]) -> None:
    if after := [rest for rest in names if any(norm in rest for norm in AFTERWARDS)]:
        raise RecipeError(
            f"slices[{i}].scale: does nothing here, {after[0].lstrip('.')!r} normalises what a block adds; leave it out"
        )
    if not any(map(writes, names)):
        known = ", ".join(sorted(WRITERS))
        raise RecipeError(
            f"slices[{i}].scale: none of the layer's tensors is known to write to the residual stream ({known});"
            " give the slice a rule with method passthrough and its own scale"
        )
