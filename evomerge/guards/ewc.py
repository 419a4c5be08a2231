"""How much a candidate is predicted to forget, from its weights alone: elastic weight consolidation (Kirkpatrick et al. 2017).

The Fisher diagonal of a model's skill is estimated once, on texts of that skill, and stored. The penalty ½ Σ F (θ - θ*)² is
summed while a candidate's tensors flow by: to second order the rise of the mean loss per token, in nats, for small moves only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.candidate import live
from evomerge.candidate.checkpoint import FLOATS, Checkpoint, TensorInfo
from evomerge.candidate.stream import Candidate
from evomerge.errors import GuardError

if TYPE_CHECKING:
    from torch.nn import Module

KINDS = ("parameter", "block")  # a number for every weight, or one for every tensor: its mean, four bytes a tensor


def fisher(model: Module, texts: Iterable[Sequence[int]], names: Iterable[str]) -> dict[str, Tensor]:
    """The empirical Fisher diagonal per token, Σ (∇ log p(text))² / tokens over texts of token ids; by name as on disk.

    Of two names of one tied tensor only the first is kept. float32, float64 where the model is. Raises GuardError on no token.
    """
    targets = live.named(model, names)
    total = {name: torch.zeros_like(tensor, dtype=_wide(tensor)) for name, tensor in targets.items()}
    tokens = 0
    for text in texts:
        if len(text) > 1:
            for name, gradient in zip(targets, _gradients(model, text, list(targets.values())), strict=True):
                total[name] += gradient.to(total[name].dtype).square()
            tokens += len(text) - 1
    if not tokens:
        raise GuardError("ewc: the texts hold no token to predict; give some of two tokens or more")
    return {name: sums / tokens for name, sums in total.items()}


def _gradients(model: Module, text: Sequence[int], parameters: list[Tensor]) -> tuple[Tensor, ...]:
    ids = torch.tensor([list(text)], device=parameters[0].device)
    with torch.enable_grad():
        log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        said = log_probs.gather(-1, ids[0, 1:, None]).sum()
        return torch.autograd.grad(said, parameters)


def write_fisher(path: str | Path, diagonal: Mapping[str, Tensor], *, model: str, kind: str = "parameter") -> None:
    """Store a diagonal with the fingerprint of its model; `kind` block keeps the mean of every tensor only."""
    from safetensors.torch import save_file

    kept = {name: value.mean() if kind == "block" else value for name, value in diagonal.items()}
    draft = Path(f"{path}.draft")
    save_file({name: value.cpu().contiguous() for name, value in kept.items()}, draft, metadata={"model": model, "kind": kind})
    draft.replace(path)


@dataclass(frozen=True)
class Anchor:
    """A skill to keep: its model's weights, and how much each of them matters to it."""

    name: str
    model: Checkpoint
    diagonal: Path
    names: frozenset[str]  # of the tensors that the diagonal knows
    _read: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, name: str, model: Checkpoint, folder: str | Path) -> Anchor:
        """The anchor of a source. Raises GuardError where its Fisher is missing, broken, or of another model."""
        path = Path(folder) / f"{name}.safetensors"
        how = f"estimate it with: evomerge fisher {model.path} --texts FILE --out {path}"
        if not path.is_file():
            raise GuardError(f"guard.ewc: no Fisher of {name} at {path}; {how}")
        try:
            metadata, shapes = _header(path)
        except Exception:
            raise GuardError(f"guard.ewc: {path} is no safetensors file; {how}") from None
        if metadata.get("model") != model.fingerprint:
            raise GuardError(f"guard.ewc: {path} was estimated for another model than {model.path}; {how}")
        if unlike := [key for key, shape in shapes.items() if not _fits(shape, model.tensors.get(key))]:
            raise GuardError(f"guard.ewc: {path} does not fit {model.path} at {unlike[0]!r}; {how}")
        return cls(name, model, path, frozenset(shapes))

    def penalty(self, name: str, tensor: Tensor) -> float:
        """What one tensor of a candidate adds; 0 for tensors that the diagonal does not know."""
        if name not in self.names:
            return 0.0
        weight, star = (known.to(tensor.device) for known in self._tensors(name))
        move = tensor.to(_wide(tensor)) - star.to(_wide(tensor))
        return 0.5 * float((weight * move.square()).sum(dtype=torch.float64))

    def _tensors(self, name: str) -> tuple[Tensor, Tensor]:
        """F and θ* of a tensor, read once: a search asks for them with every candidate."""
        if name not in self._read:
            from safetensors import safe_open

            with safe_open(self.diagonal, framework="pt") as file:
                self._read[name] = file.get_tensor(name), self.model.read(name).clone()
        return self._read[name]


@dataclass
class Penalties:
    """Watches a candidate's stream, and has the penalty of every anchor when it has run."""

    anchors: Sequence[Anchor]
    totals: dict[str, float] = field(default_factory=dict)

    def watch(self, candidate: Candidate) -> Candidate:
        """The same candidate, whose stream sums as it flows by. Raises GuardError where an anchored tensor is not in it."""
        for anchor in self.anchors:
            if missing := sorted(anchor.names - set(candidate.manifest)):
                raise GuardError(f"guard.ewc: the candidate has no {missing[0]!r}, which the Fisher of {anchor.name} knows")
        return replace(candidate, weights=_Watched(candidate.weights, self))


@dataclass(frozen=True)
class _Watched:
    weights: Iterable[tuple[str, Tensor]]
    penalties: Penalties

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        totals = self.penalties.totals
        totals.clear()
        totals.update({anchor.name: 0.0 for anchor in self.penalties.anchors})
        for name, tensor in self.weights:
            for anchor in self.penalties.anchors:
                totals[anchor.name] += anchor.penalty(name, tensor)
            yield name, tensor


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _header(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def _fits(shape: tuple[int, ...], info: TensorInfo | None) -> bool:
    return info is not None and info.dtype in FLOATS and shape in ((), info.shape)
