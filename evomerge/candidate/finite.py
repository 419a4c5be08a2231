"""No NaN and no infinity gets into a merge: a tensor is looked through when it is read, in the pass that merges it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.candidate.checkpoint import FLOATS, Checkpoint
from evomerge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 22  # elements
EARLIER = "take a checkpoint from before its training broke"


def refuse_nan(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError at the first tensor with a value that is no finite number; reads the whole checkpoint."""
    for name, info in checkpoint.tensors.items():
        if info.dtype in FLOATS:
            refuse_odd(checkpoint.read(name), name, checkpoint.files[name])


def refuse_odd(tensor: Tensor, name: str, file: Path, remedy: str = EARLIER) -> Tensor:
    """The tensor. Raises CheckpointError with its name and file where a value is no finite number."""
    if not finite(tensor):
        raise CheckpointError(f"{file}: {name!r} has NaN or infinite values; {remedy}")
    return tensor


def finite(tensor: Tensor) -> bool:
    """Whether every value is a finite number; whole numbers are."""
    import torch

    from evomerge import kernels

    if not tensor.is_floating_point():
        return True
    if fused := kernels.twin("finite", None, [tensor]):
        return bool(fused(tensor))
    return all(bool(torch.isfinite(piece).all()) for piece in torch.split(tensor.reshape(-1), PIECE))
