"""What a config says of layers: how many each tower has, and what it lists layer by layer; as a stack leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")  # what configs call the number of layers
# The same of the two halves of a model that has an encoder and a decoder
OF_HALF = {"decoder": ("num_decoder_layers", "decoder_layers"), "encoder": (*COUNTS, "encoder_layers")}
INNER = ("text_config", "llm_config", "language_config")  # where models of several towers keep that of their text
BY_INDEX = ("fullatt_block_indexes", "mlp_only_layers")  # lists of the layers that are unlike the others
BY_NUMBER = (
    "first_k_dense_replace", "moe_layer_freq", "attn_layer_period", "attn_layer_offset", "deepstack_visual_indexes",
)  # fmt: skip
FED_FROM = "vision_feature_layer"  # whose output the text tower sees; counted from the end it holds for every stack

Origin = tuple[str, int]  # a model and one of its layers


def layer_count(config: Mapping[str, Any]) -> int | None:
    """How many layers a config announces, its text tower's where it has several."""
    inner: Mapping[str, Any] = next((config[key] for key in INNER if isinstance(config.get(key), Mapping)), {})
    return next((int(each[key]) for each in (config, inner) for key in COUNTS if isinstance(each.get(key), int)), None)


def stacked_config(
    config: Mapping[str, Any], recipe: Recipe, models: Mapping[str, Checkpoint], tower: str = "layers"
) -> dict[str, Any]:
    """The base's config with the new number of layers, and what it lists layer by layer taken from where they come from.

    `tower` is what comes before the layers' numbers: it decides which of several configs and counts is meant.
    """
    origins = [
        (role, first + step)
        for part in recipe.slices
        for role, (first, _) in [next(iter(part.layers.items()))]
        for step in range(part.count)
    ]
    key = _section(config, tower)
    configs = {role: model.config for role, model in models.items()}
    if key is None:
        return _restacked(config, origins, configs, tower)
    if key == "vision_config" and isinstance(config.get(FED_FROM), int) and config[FED_FROM] >= 0:
        raise RecipeError(f"slices: the config counts layers by `{FED_FROM}`, which no stack keeps; leave `slices` out")
    inner = {role: each.get(key, {}) for role, each in configs.items()}
    return {**config, key: _restacked(config[key], origins, inner, tower)}


def _section(config: Mapping[str, Any], tower: str) -> str | None:
    """Where a config keeps what it says of a tower: `vision_config` for `model.vision_tower.encoder.layers`."""
    nested = [key for key, value in config.items() if isinstance(value, Mapping) and key.endswith("_config")]
    named = [key for key in nested if key.removesuffix("_config") in tower.replace("visual", "vision")]
    return next((key for key in (*named, *INNER) if key in nested), None)


def _restacked(
    config: Mapping[str, Any], origins: list[Origin], configs: Mapping[str, Mapping[str, Any]], tower: str
) -> dict[str, Any]:
    before = _halves(config)
    counted = _counts(before, tower)
    changed: dict[str, Any] = {}
    for key, value in before.items():
        if key in counted:
            changed[key] = len(origins)
        elif isinstance(value, list) and key in BY_INDEX:
            changed[key] = [i for i, (role, index) in enumerate(origins) if index in configs.get(role, {}).get(key, value)]
        elif isinstance(value, list) and "layer" in key and len(value) in {before[count] for count in counted}:
            changed[key] = [_item(configs.get(role, {}).get(key), index, value) for role, index in origins]
        elif key in BY_NUMBER and value not in (None, [], 0, 1):
            raise RecipeError(f"slices: the config counts layers by `{key}`, which no stack keeps; leave `slices` out")
    return {**before, **changed}


def _halves(config: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder of as many layers as its encoder, said of both: T5 has one number for two halves of one depth."""
    both = config.get("is_encoder_decoder") and "num_layers" in config
    return {**config, **({"num_decoder_layers": config.get("num_decoder_layers") or config["num_layers"]} if both else {})}


def _counts(config: Mapping[str, Any], tower: str) -> list[str]:
    """The keys that count a tower's layers."""
    half = next((half for half in OF_HALF if half in tower), "") if config.get("is_encoder_decoder") else ""
    return [key for key in OF_HALF.get(half, COUNTS) if isinstance(config.get(key), int)]


def _item(values: Any, index: int, fallback: list[Any]) -> Any:
    """A layer's entry in its own model's list; where that has none, in the base's."""
    known = values if isinstance(values, list) and index < len(values) else fallback
    return known[min(index, len(known) - 1)]
