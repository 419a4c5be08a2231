"""A candidate into a live transformers module, in place: nothing touches the disk."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evomerge import kernels
from evomerge.candidate.stream import TORCH_DTYPES, Candidate, Merge, Weights
from evomerge.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# What may change from candidate to candidate within one live module; any other key makes it another model.
ROPE_KEYS = ("rope_parameters", "max_position_embeddings")
NO_MATTER = (*ROPE_KEYS, "dtype", "transformers_version", "_name_or_path", "architectures")


def module(config: Mapping[str, Any], dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> PreTrainedModel:
    """A transformers model of this config, for scoring; its weights are whatever was in memory until `load`."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with torch.device(device), no_init_weights():
        own = copy.deepcopy(read_config(config))  # a module keeps its config, and `load` changes it
        model: PreTrainedModel = AutoModelForCausalLM.from_config(own, dtype=dtype)
    model.tie_weights()
    return model.eval()


def load(candidate: Candidate, model: PreTrainedModel) -> None:
    """The candidate's weights and context into the module; a candidate that does not match is refused before any is written.

    A tensor is rounded to the candidate's dtype first and then taken to the module's: scores are those of the written model.
    Where both are the same it is merged straight into the module's memory, and copied nowhere.
    """
    config, targets = read_config(candidate.config), _targets(model)
    check(candidate, model)
    _check_config(config, model.config)
    fill(into(candidate, targets).weights, targets)
    _set_context(model, config)


def into(candidate: Candidate, targets: Mapping[str, Tensor]) -> Candidate:
    """The same candidate, where each tensor that can be is merged straight into its target's memory."""
    return replace(candidate, weights=candidate.weights.into(targets)) if isinstance(candidate.weights, Merge) else candidate


@torch.no_grad()
def fill(weights: Weights, targets: Mapping[str, Tensor]) -> None:
    """Copies into its target each tensor that has one and is not there already."""
    for name, tensor in weights:
        if (target := targets.get(name)) is not None and not kernels.same_memory(tensor, target):
            target.copy_(tensor)


def snapshot(model: PreTrainedModel, like: Candidate, key: str) -> Candidate:
    """What healing has made of the module, as a candidate with the names and dtypes of another.

    It is rounded as the written model is; `load` it back before scoring.
    """
    targets = _targets(model)
    tensors = {
        name: targets[name].detach().to("cpu", TORCH_DTYPES[info.dtype], copy=True) for name, info in like.manifest.items()
    }
    return Candidate.of(like.config, tensors, key)


def read_config(config: Mapping[str, Any]) -> PretrainedConfig:
    """What config.json says, as transformers' own object; shared by all who ask: copy it before changing it."""
    return _read_config(json.dumps(config, sort_keys=True))


def named(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The module's trainable tensors under their names on disk; of tied names only the first."""
    targets, seen = _targets(model), set[int]()
    found: dict[str, Tensor] = {}
    for name in names:
        tensor = targets.get(name)
        if tensor is not None and tensor.requires_grad and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


@functools.lru_cache(maxsize=16)
def _read_config(text: str) -> PretrainedConfig:
    from transformers import AutoConfig

    data = json.loads(text)
    if "model_type" not in data:
        raise CheckpointError("config.json: has no 'model_type'; only transformers models can be loaded live")
    return AutoConfig.for_model(**data)


def same_model(config: PretrainedConfig, live: PretrainedConfig) -> bool:
    """Whether candidates of both configs fit into one live model: they differ in nothing but context and dtype."""
    return _plain(config) == _plain(live)


def check(candidate: Candidate, model: nn.Module) -> None:
    """Raises CheckpointError unless the candidate's tensors, by name, shape and kind of number, fill the module; reads none."""
    manifest, targets = candidate.manifest, _targets(model)
    for name, info in manifest.items():
        if name not in targets:
            raise CheckpointError(f"candidate: {name!r} has no place in the live model; it was built from another architecture")
        if tuple(targets[name].shape) != info.shape:
            raise CheckpointError(
                f"candidate: {name!r} has the shape {list(info.shape)}, the live model {list(targets[name].shape)};"
                " build the live model from the candidate's config"
            )
        if targets[name].is_floating_point() != TORCH_DTYPES[info.dtype].is_floating_point:
            raise CheckpointError(
                f"candidate: {name!r} has the dtype {info.dtype}, the live model {targets[name].dtype}; is it quantised?"
            )
    filled = {id(targets[name]) for name in manifest}
    if left := [name for name, target in targets.items() if id(target) not in filled]:
        raise CheckpointError(f"candidate: lacks {left[0]!r}, which the live model has; is the checkpoint complete?")


def _targets(model: nn.Module) -> dict[str, Tensor]:
    """Every name that may stand on disk, with the tensor it fills; tied names share one."""
    computed = {f"{path}.{name}".lstrip(".") for path, part in model.named_modules() for name in part._non_persistent_buffers_set}
    buffers = {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name not in computed}
    return {**dict(model.named_parameters(remove_duplicate=False)), **buffers}


def _check_config(config: PretrainedConfig, live: PretrainedConfig) -> None:
    ours, theirs = _plain(config), _plain(live)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise CheckpointError(
                f"candidate: {key} is {ours.get(key)} in its config and {theirs.get(key)} in the live model's;"
                " build the live model from the candidate's config"
            )


def _plain(config: PretrainedConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in NO_MATTER}


def _set_context(model: PreTrainedModel, config: PretrainedConfig) -> None:
    """The rotary tables of this config: transformers computes them when a module is built, and never again."""
    if all(getattr(model.config, key, None) == getattr(config, key, None) for key in ROPE_KEYS):
        return
    for key in ROPE_KEYS:
        if hasattr(config, key):
            setattr(model.config, key, copy.deepcopy(getattr(config, key)))
    for parent, name, rotary in list(_rotary(model)):
        with torch.device(rotary.inv_freq.device):
            setattr(parent, name, type(rotary)(config=model.config))


def _rotary(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if hasattr(child, "inv_freq") and hasattr(child, "config"):
                yield parent, name, child
