"""Context extension as pure functions on a model's config: position interpolation, NTK-aware scaling, YaRN.

With D rotary dimensions, base b, trained length L₀ and factor s, pair j turns by θⱼ = b^(-2j/D) a token, and

    linear   θⱼ / s                                       position interpolation, Chen et al. 2023 (arXiv:2306.15595)
    ntk      the same formula with b · s^(D/(D-2))        bloc97 2023; no type of transformers: it is a changed rope_theta
    yarn     a ramp from θⱼ (fast pairs) to θⱼ / s        YaRN, Peng et al. 2023 (arXiv:2309.00071)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evomerge.errors import RecipeError
from evomerge.recipe import Context

OLD_KEYS = ("rope_scaling", "rope_theta")  # of transformers 4; where they disagree with rope_parameters, they win


def extend(config: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The config of the model with a longer context; factor 1 leaves it as it is.

    The new length is a whole number of tokens, and the factor written is exactly new over old: transformers warns of any other.
    """
    original = _number(config, "max_position_embeddings")
    longer = round(original * context.factor)
    if longer == original:
        return dict(config)
    current = _parameters(config)
    if current["rope_type"] != "default":
        raise RecipeError(
            f"context: the base is extended already (rope_type {current['rope_type']}); leave `context` out, or take the model"
            " it was extended from as base"
        )
    parameters = current | _extension(config, context, longer / original, int(original))
    return _written(config, parameters) | {"max_position_embeddings": longer}


def _extension(config: Mapping[str, Any], context: Context, factor: float, original: int) -> dict[str, Any]:
    if context.rope_type == "ntk":
        dim = rotary_dim(config)
        return {"rope_theta": _parameters(config)["rope_theta"] * factor ** (dim / (dim - 2))}
    if context.rope_type == "linear":
        return {"rope_type": "linear", "factor": factor}
    dials = {"beta_fast": context.beta_fast, "beta_slow": context.beta_slow, "attention_factor": context.attention_factor}
    given = {name: float(value) for name, value in dials.items() if value is not None}
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **given}


def _written(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The config with these rope parameters under the new key and, agreeing, under the old ones for older readers."""
    changed = {key: value for key, value in config.items() if key not in OLD_KEYS}
    changed["rope_parameters"] = dict(parameters)
    changed["rope_theta"] = parameters["rope_theta"]
    if parameters["rope_type"] != "default":
        changed["rope_scaling"] = dict(parameters)
    return changed


def inverse_frequencies(config: Mapping[str, Any]) -> tuple[list[float], float]:
    """What each pair of dimensions turns by per token, and the factor on cosine and sine (so logits scale by its square)."""
    parameters, dim = _parameters(config), rotary_dim(config)
    plain = [parameters["rope_theta"] ** (-2 * j / dim) for j in range(dim // 2)]
    kind = parameters["rope_type"]
    if kind == "default":
        return plain, 1.0
    factor = float(parameters["factor"])
    if kind == "linear":
        return [theta / factor for theta in plain], 1.0
    if kind != "yarn":
        raise RecipeError(f"rope: the type {kind!r} is not computed here (known: default, linear, yarn)")
    ramp = _ramp(parameters, dim, float(parameters.get("original_max_position_embeddings") or config["max_position_embeddings"]))
    return [theta * (1 - r) + theta / factor * r for theta, r in zip(plain, ramp, strict=True)], _attention(parameters)


def _ramp(parameters: Mapping[str, Any], dim: int, original: float) -> list[float]:
    """0 for pairs that turn often within the trained length and are kept, 1 for those that are interpolated in full."""

    def pair(rotations: float) -> float:  # the pair that turns so many times within the trained length
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(parameters["rope_theta"]))

    low, high = pair(parameters.get("beta_fast") or 32), pair(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)  # dim - 1 and not dim / 2 - 1: as in the reference
    high += 0.001 * (low == high)
    return [min(max((j - low) / (high - low), 0.0), 1.0) for j in range(dim // 2)]


def _attention(parameters: Mapping[str, Any]) -> float:
    """√(1/t) = 0.1 ln s + 1, or the quotient of two such with DeepSeek's mscale and mscale_all_dim."""
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(max(parameters["factor"], 1.0)) + 1.0

    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return scale(mscale) / scale(all_dim) if mscale and all_dim else scale(1.0)


def rotary_dim(config: Mapping[str, Any]) -> int:
    """How many dimensions of a head are turned."""
    head = config.get("head_dim") or _number(config, "hidden_size") // _number(config, "num_attention_heads")
    partial = _parameters(config).get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return int(head * partial)


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope parameters as transformers 5 reads them: the old keys first, 10000 where no base is named."""
    found = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    if any(isinstance(value, Mapping) for value in found.values()):
        raise RecipeError("context: the base has rope parameters for each kind of layer; its context cannot be extended here yet")
    kind = found.pop("type", None)
    return {**found, "rope_type": found.get("rope_type") or kind or "default", "rope_theta": _theta(config, found)}


def _theta(config: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    return float(found.get("rope_theta") or config.get("rope_theta") or 10000.0)


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise RecipeError(f"context: the base's config.json has no {key!r}; a context is extended only where rope is described")
    return value
