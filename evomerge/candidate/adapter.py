"""A LoRA over a model, read as the model it makes: W + s·B·A, in float64 and not rounded. Hu et al. 2021 (arXiv:2106.09685).

The scale s is alpha / r, or alpha / √r where the adapter says `use_rslora` (Kalajdzievski 2023, arXiv:2312.03732). Ranks are
those of the matrices themselves, so adapters of different ranks merge as any other sources do.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.candidate.checkpoint import FLOATS, Checkpoint, TensorInfo, digest, read_header, read_json
from evomerge.candidate.files import contained, not_pickle
from evomerge.candidate.finite import refuse_odd
from evomerge.document import nearest
from evomerge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MATRIX = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<side>[AB])(?:\.default)?(?:\.weight)?$")
# Options under which the adapter is not W + s·B·A over the model that the recipe names, and what to do then
REFUSED = {
    "use_dora": "is a DoRA adapter, which scales whole columns as well; merge it into its model first (peft: merge_and_unload)",
    "use_qalora": "is a QA-LoRA adapter over a quantised model; merge it into its model first (peft: merge_and_unload)",
    "use_bdlora": "is a block-diagonal LoRA; merge it into its model first (peft: merge_and_unload)",
    "lora_bias": "has biases of its own (lora_bias); merge it into its model first (peft: merge_and_unload)",
    "alora_invocation_tokens": "is an activated LoRA, in force after certain tokens only: no weights are equal to it",
    "layer_replication": "repeats layers of its model (layer_replication); merge it into its model first",
    "trainable_token_indices": "trains single tokens (trainable_token_indices); merge it into its model first",
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that leave other weights in the base


@dataclass(frozen=True)
class Change:
    """What an adapter does to one tensor: another one in its place, s·B·A on top, or both."""

    instead: str | None = None  # names in the adapter's file
    down: str | None = None  # A, [r, in]
    up: str | None = None  # B, [out, r]
    scale: float = 1.0
    transposed: bool = False  # the tensor lies as [in, out]


@dataclass(frozen=True)
class Adapted(Checkpoint):
    """A model with a LoRA over it: the names, shapes and dtypes are the model's, what the adapter changes is read in float64."""

    adapter: Path = Path()  # the file of its weights
    changes: Mapping[str, Change] = field(default_factory=dict)

    def read(self, name: str) -> Tensor:
        """One tensor: float64 where the adapter changes it, else as it lies in the model."""
        change = self.changes.get(name)
        if change is None:
            return super().read(name)
        tensor = (self._part(change.instead) if change.instead else super().read(name)).double()
        if change.up and change.down:
            _add(tensor, self._part(change.up), self._part(change.down), change)
        return tensor

    def size_of(self, name: str) -> int:
        """How many bytes `read` gives."""
        return 8 * self.tensors[name].elements if name in self.changes else super().size_of(name)

    def _part(self, name: str) -> Tensor:
        from safetensors import safe_open

        if self.adapter not in self._open:
            self._open[self.adapter] = safe_open(self.adapter, framework="pt")
        tensor: Tensor = self._open[self.adapter].get_tensor(name)
        return refuse_odd(tensor, name, self.adapter)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the model's and the adapter's files."""
        parts = [super().fingerprint, digest(self.adapter), digest(self.adapter.parent / CONFIG)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def _add(tensor: Tensor, up: Tensor, down: Tensor, change: Change) -> None:
    up, down = up.double().flatten(1), down.double().flatten(1)
    if change.transposed:
        up, down = down.T, up.T
    tensor.flatten(1).addmm_(up, down, alpha=change.scale)


def open_adapter(model: Checkpoint, folder: Path) -> Adapted:
    """The model with the adapter in a folder over it.

    Raises CheckpointError where it is no plain LoRA, where its files are missing or broken, and where the model has no such
    tensor or one of another shape.
    """
    settings = _settings(folder)
    file = _weights(folder)
    header = read_header(file)
    changes = dict(_changes(model, file, header, settings))
    if not changes:
        raise CheckpointError(f"{file}: holds no LoRA; copy or download the adapter again")
    return Adapted(model.path, model.config, model.tensors, model.files, adapter=file, changes=changes)


def _settings(folder: Path) -> Mapping[str, Any]:
    if not (folder / CONFIG).exists():
        raise CheckpointError(f"{folder}: has no {CONFIG}; name the folder of a LoRA adapter as PEFT writes it")
    settings = read_json(contained(folder / CONFIG, folder))
    if settings.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{folder}: is a {settings['peft_type']} adapter; only LoRA adapters can be merged as sources")
    for option, why in REFUSED.items():
        if settings.get(option):
            raise CheckpointError(f"{folder}: {why}")
    begun = str(settings.get("init_lora_weights", "")).lower()
    if begun.startswith(CHANGES_BASE):
        raise CheckpointError(
            f"{folder}: was begun by {begun}, which changed the model under it; convert it to a plain LoRA"
            " (peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return settings


def _weights(folder: Path) -> Path:
    file = folder / WEIGHTS
    if not file.exists() and (pickle := folder / "adapter_model.bin").exists():
        not_pickle(pickle)
    return contained(file, folder)


def _changes(
    model: Checkpoint, file: Path, header: Mapping[str, TensorInfo], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Change]]:
    pairs: dict[str, dict[str, str]] = {}
    instead: dict[str, str] = {}
    for key in header:
        plain = key.removeprefix("base_model.model.")
        if found := MATRIX.match(plain):
            pairs.setdefault(found["module"], {})[found["side"]] = key
        elif ".lora_" in plain:
            what = "a DoRA adapter" if "magnitude" in plain else "no plain LoRA"
            raise CheckpointError(f"{file}: is {what}: it has {key!r}; merge it into its model first (peft: merge_and_unload)")
        else:
            instead[re.sub(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", plain)] = key
    for module, sides in pairs.items():
        name = _target(model, file, module)
        yield name, _low_rank(model, file, header, settings, module, sides, name, instead.pop(name, None))
    for name, key in instead.items():
        _fits(model, file, _target(model, file, name, exact=True), key, header[key].shape, header[key].dtype)
        yield name, Change(key)


def _target(model: Checkpoint, file: Path, module: str, *, exact: bool = False) -> str:
    for name in (module,) if exact else (f"{module}.weight", module):
        if name in model.tensors:
            return name
    raise CheckpointError(
        f"{file}: changes {module!r}, which the model {model.path} has not; name the model that the adapter was trained on"
        f"{_tied(model, module)}"
    )


def _tied(model: Checkpoint, module: str) -> str:
    if "lm_head" in module and model.config.get("tie_word_embeddings"):
        return " (here the head is tied to the embedding: save the model untied first)"
    close = nearest(module, tuple(name.removesuffix(".weight") for name in model.tensors))
    return close.split(" (known", 1)[0]


def _low_rank(
    model: Checkpoint, file: Path, header: Mapping[str, TensorInfo], settings: Mapping[str, Any], module: str,
    sides: Mapping[str, str], name: str, instead: str | None,
) -> Change:  # fmt: skip
    if len(sides) < 2:
        raise CheckpointError(f"{file}: has only one of the two matrices of {module!r}; copy or download the adapter again")
    down, up = header[sides["A"]].shape, header[sides["B"]].shape
    transposed = bool(settings.get("fan_in_fan_out")) or "lora_embedding_" in sides["A"]
    product = (up[0], *down[1:]) if not transposed else (down[1], up[0])
    if down[0] != up[1] or not down[0]:
        raise CheckpointError(f"{file}: the matrices of {module!r} are {list(down)} and {list(up)}: ranks that differ")
    _fits(model, file, name, sides["A"], product, header[sides["A"]].dtype)
    return Change(instead, sides["A"], sides["B"], _scale(settings, module, down[0]), transposed)


def _fits(model: Checkpoint, file: Path, name: str, key: str, shape: tuple[int, ...], dtype: str) -> None:
    info = model.tensors[name]
    if shape != info.shape:
        grown = ": its vocabulary was resized; resize the model's and save both" if shape[1:] == info.shape[1:] else ""
        raise CheckpointError(
            f"{file}: {key!r} makes a tensor of {list(shape)}, {name!r} in the model {model.path} is {list(info.shape)}"
            f"{grown or '; name the model that the adapter was trained on'}"
        )
    if info.dtype not in FLOATS or dtype not in FLOATS:
        raise CheckpointError(f"{file}: {key!r} is {dtype} over {info.dtype}; only F64, F32, F16 and BF16 can be merged")


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = float(_of_pattern(settings.get("alpha_pattern") or {}, module, settings.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT reads them."""
    return next((value for pattern, value in patterns.items() if _pattern(pattern).match(module)), default)


@functools.cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")
