"""A language model merged into the text tower of a vision-language model: its tensors found by name, the rest carried.

No table of architectures: the source's names are the base's with one prefix put for another (`model.` for
`model.language_model.`), and every one of them must be there with its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.plan import outputs
from evomerge.candidate.stack import numbered
from evomerge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

BODY = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act")


@dataclass(frozen=True)
class Tower(Checkpoint):
    """A model under the names of another's text tower; what it has not is that other one's."""

    inner: Checkpoint | None = None
    rest: Checkpoint | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # of the base -> of the model

    def read(self, name: str) -> Tensor:
        """One tensor by its name in the base."""
        assert self.inner is not None
        assert self.rest is not None
        return self.inner.read(self.names[name]) if name in self.names else self.rest.read(name)

    @property
    def tokenizer(self) -> str | None:
        return self.inner.tokenizer if self.inner else None


def in_towers(models: Mapping[str, Checkpoint]) -> dict[str, Checkpoint]:
    """The models of a recipe, the base first; language models beside a base that sees as well stand in its text tower.

    The base carries what one of them has not: those tensors are written as they are. Raises CheckpointError where a text tower
    is of another shape.
    """
    base, found = models["base"], dict(models)
    if not isinstance(base.config.get("text_config"), Mapping):
        return found
    wanted = set(outputs(base))
    carried = set[str]()
    for role, model in models.items():
        if role != "base" and set(outputs(model)) != wanted and (names := text_names(model, base)) is not None:
            _refuse_other_body(role, model, base)
            found[role] = _tower(model, base, names)
            carried |= wanted - names.keys()
    if carried:
        found["base"] = replace(base, carried=base.carried | carried)
    return found


def _tower(model: Checkpoint, base: Checkpoint, names: Mapping[str, str]) -> Tower:
    tensors = {name: model.tensors[names[name]] if name in names else info for name, info in base.tensors.items()}
    size = _text(model.config).get("vocab_size")
    config: dict[str, Any] = {**base.config, "text_config": {**base.config["text_config"], "vocab_size": size}}
    if "vocab_size" in base.config:
        config["vocab_size"] = size
    files = {name: model.files[names[name]] if name in names else file for name, file in base.files.items()}
    return Tower(model.path, config, tensors, files, inner=model, rest=base, names=names)


def text_names(model: Checkpoint, base: Checkpoint) -> dict[str, str] | None:
    """For each tensor of the model its name in the base, as {base's: model's}; None where they are not the base's text tower."""
    mine = {name: model.tensors[name].shape for name in outputs(model)}
    for before in sorted(_prefixes(mine), key=len):
        for after in sorted(_prefixes(base.tensors), key=len, reverse=True):
            names = {after + name[len(before) :] if name.startswith(before) else name: name for name in mine}
            if len(names) == len(mine) and all(_fits(base, name, mine[own]) for name, own in names.items()):
                return names
    return None


def _fits(base: Checkpoint, name: str, shape: tuple[int, ...]) -> bool:
    """Whether the base has such a tensor; vocabularies may have other lengths, which is looked at later."""
    info = base.tensors.get(name)
    return info is not None and (info.shape == shape or (info.shape[1:] == shape[1:] and not numbered(name)))


def _prefixes(names: Mapping[str, Any]) -> set[str]:
    """Every beginning of a name up to a dot and before a number; the empty one too."""
    return {"", *(prefix for name in names for prefix in _beginnings(name))}


def _beginnings(name: str) -> Iterator[str]:
    prefix = ""
    for part in name.split(".")[:-1]:
        if part.isdigit():
            return
        prefix += f"{part}."
        yield prefix


def _refuse_other_body(role: str, model: Checkpoint, base: Checkpoint) -> None:
    theirs, ours = _text(model.config), _text(base.config)
    for key in BODY:
        if theirs.get(key) is not None and ours.get(key) is not None and theirs[key] != ours[key]:
            raise CheckpointError(
                f"{model.path}: source {role!r} is of another architecture than the text tower of the base {base.path}:"
                f" {key} is {theirs[key]} there and {ours[key]} here; only fine-tunes of one model can be merged"
            )


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config
