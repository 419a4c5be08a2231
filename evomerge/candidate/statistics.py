"""What was measured of a source on texts, tensor by tensor: Fisher diagonals and Gram matrices, each in a safetensors file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.candidate.checkpoint import Checkpoint, TensorInfo, read_header
from evomerge.candidate.finite import refuse_odd
from evomerge.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

NEEDS = {"fisher": "fisher", "regmean": "gram"}  # method -> the key of a source
VERBS = {"fisher": "evomerge fisher", "gram": "evomerge gram"}


@dataclass(frozen=True)
class Statistics:
    """A file of numbers about one model's tensors."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    _open: list[Any] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def open(cls, kind: str, role: str, file: str | None, model: Checkpoint) -> Statistics:
        """The numbers of a source. Raises RecipeError where it names none, CheckpointError where they are of another model."""
        how = f"{VERBS[kind]} {model.path} --texts FILE --out NAME.safetensors"
        if file is None:
            raise RecipeError(f"sources.{role}: has no {kind!r}; add `{kind}: NAME.safetensors` to it, made by: {how}")
        path = Path(file)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file (sources.{role}.{kind}); make it with: {how}")
        tensors = read_header(path)
        if strange := sorted(name for name in tensors if not _fits(kind, tensors[name], model.tensors.get(name))):
            raise CheckpointError(f"{path}: {strange[0]!r} does not fit {model.path}; make it anew with: {how}")
        return cls(path, tensors)

    def read(self, name: str) -> Tensor | None:
        """The numbers of a tensor; None where the file knows nothing of it."""
        from safetensors import safe_open

        if name not in self.tensors:
            return None
        if not self._open:
            self._open.append(safe_open(self.path, framework="pt"))
        found: Tensor = self._open[0].get_tensor(name)
        return refuse_odd(found, name, self.path, "measure it anew")


def _fits(kind: str, info: TensorInfo, weight: TensorInfo | None) -> bool:
    if weight is None:
        return False
    return info.shape in ((), weight.shape) if kind == "fisher" else info.shape == weight.shape[-1:] * 2


def gram(model: Module, texts: Iterable[Sequence[int]], names: Iterable[str]) -> dict[str, Tensor]:
    """XᵀX per token of what goes into each linear layer on texts of token ids, [in, in] float32, by the name of its weight.

    Summed in float64. Raises CheckpointError on no token.
    """
    import torch

    wanted, tokens = set(names), 0
    sums: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Module, arguments: tuple[Tensor, ...]) -> None:
            rows = arguments[0].detach().reshape(-1, arguments[0].shape[-1]).double()
            sums[name] = sums[name] + rows.T @ rows if name in sums else rows.T @ rows

        return hook

    linear = [(f"{path}.weight", part) for path, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    hooks = [part.register_forward_pre_hook(keep(name)) for name, part in linear if name in wanted]
    try:
        with torch.no_grad():
            for text in texts:
                if text:
                    model(input_ids=torch.tensor([list(text)], device=next(model.parameters()).device))
                    tokens += len(text)
    finally:
        for hook in hooks:
            hook.remove()
    if not tokens:
        raise CheckpointError("gram: the texts hold no token; give some")
    return {name: (total / tokens).float() for name, total in sums.items()}
