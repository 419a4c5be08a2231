"""Layers of any model in any order: what each tensor of a stack is made of, and the config it goes with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.candidate.checkpoint import Checkpoint, TensorInfo
from evomerge.errors import CheckpointError, RecipeError
from evomerge.recipe import Recipe, Slice

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # what configs call the number of layers
INNER = ("text_config", "llm_config", "language_config")  # where models of several towers keep that of their text
# What the parts of a block are called that write to the residual stream: a slice's `scale` multiplies them
WRITERS = frozenset(
    ("o_proj", "out_proj", "c_proj", "down_proj", "dense", "dense_4h_to_h", "wo", "w2", "fc2", "fc_out", "out_lin", "lin2")
)
AFTERWARDS = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_ffn_norm")  # norms behind a block undo any scale of it
BY_NUMBER = ("first_k_dense_replace", "mlp_only_layers", "moe_layer_freq", "attn_layer_period", "attn_layer_offset")

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


def stack(recipe: Recipe, models: Mapping[str, Checkpoint], outputs: Outputs) -> list[Part]:
    """The tensors of a recipe with slices, in the order of their names.

    Raises RecipeError for a layer that a model does not have, CheckpointError where layers that are to be merged differ.
    """
    towers = {role: Tower.of(role, model, outputs) for role, model in models.items()}
    total = sum(part.count for part in recipe.slices)
    parts = list(_outside(recipe, models, towers))
    offset = 0
    for i, part in enumerate(recipe.slices):
        for step in range(part.count):
            depths = (offset + step) / max(total - 1, 1), step / (part.count - 1) if part.count > 1 else 1.0
            parts += _layer(i, part, step, offset + step, depths, towers)
        offset += part.count
    return sorted(parts, key=lambda part: part.name)


@dataclass(frozen=True)
class Tower:
    """The layers of a model: for each the tensors by what follows its number in their names."""

    role: str
    prefix: str
    layers: Mapping[int, Mapping[str, str]]
    outside: tuple[str, ...]
    model: Checkpoint

    @classmethod
    def of(cls, role: str, model: Checkpoint, outputs: Outputs) -> Tower:
        names = list(outputs(model))
        stacks: dict[str, dict[int, dict[str, str]]] = {}
        for name in names:
            if found := numbered(name):
                rest = name.removeprefix(f"{found[0]}.{found[1]}" if found[0] else str(found[1]))
                stacks.setdefault(found[0], {}).setdefault(found[1], {})[rest] = name
        count = layer_count(model.config)
        fitting = [prefix for prefix, layers in stacks.items() if len(layers) == count] or list(stacks)
        if not fitting:
            raise CheckpointError(f"{model.path}: {role!r} has no numbered layers; leave `slices` out")
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
        info = _same(f"slices[{i}]", origins, towers)
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
        yield Part(name, _same(f"slices[{i}]", origins, towers), depth, i, depth, origins)


def _same(place: str, origins: Mapping[str, str], towers: Mapping[str, Tower]) -> TensorInfo:
    """What is said of a tensor by all models that give it; they must agree on its shape."""
    infos = {role: towers[role].model.tensors[name] for role, name in origins.items()}
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


def layer_count(config: Mapping[str, Any]) -> int | None:
    """How many layers a config announces, its text tower's where it has several."""
    inner: Mapping[str, Any] = next((config[key] for key in INNER if isinstance(config.get(key), Mapping)), {})
    return next((int(each[key]) for each in (config, inner) for key in COUNTS if isinstance(each.get(key), int)), None)


def stacked_config(config: Mapping[str, Any], recipe: Recipe, models: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """The base's config with the new number of layers, and what it lists layer by layer taken from where they come from."""
    origins = [
        (role, first + step)
        for part in recipe.slices
        for role, (first, _) in [next(iter(part.layers.items()))]
        for step in range(part.count)
    ]
    key = next((key for key in INNER if isinstance(config.get(key), Mapping)), None)
    configs = {role: model.config for role, model in models.items()}
    if key is None:
        return _restacked(config, origins, configs)
    inner = {role: each.get(key, {}) for role, each in configs.items()}
    return {**config, key: _restacked(config[key], origins, inner)}


def _restacked(
    config: Mapping[str, Any], origins: list[tuple[str, int]], configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in COUNTS:
            changed[key] = len(origins)
        elif isinstance(value, list) and "layer" in key and len(value) == layer_count(config):
            changed[key] = [_item(configs.get(role, {}).get(key), index, value) for role, index in origins]
        elif key in BY_NUMBER and value not in (None, [], 0, 1):
            raise RecipeError(f"slices: the config counts layers by `{key}`, which no stack keeps; leave `slices` out")
    return {**config, **changed}


def _item(values: Any, index: int, fallback: list[Any]) -> Any:
    """A layer's entry in its own model's list; where that has none, in the base's."""
    known = values if isinstance(values, list) and index < len(values) else fallback
    return known[min(index, len(known) - 1)]
