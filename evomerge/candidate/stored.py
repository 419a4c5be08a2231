"""A model directory as a candidate: its tensors are read as the stream runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.stream import TORCH_DTYPES, Candidate


def from_disk(model: str | Path) -> Candidate:
    """The model in a directory, as it lies there. Raises CheckpointError."""
    checkpoint = Checkpoint.open(str(model))
    return Candidate(checkpoint.config, Stored(checkpoint, str(model)), checkpoint.fingerprint, checkpoint.tensors)


@dataclass(frozen=True)
class Stored:
    """The stream behind it."""

    checkpoint: Checkpoint
    location: str

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, info in self.checkpoint.tensors.items():
            yield name, self.checkpoint.read(name).to(TORCH_DTYPES[info.dtype])  # an adapter's sums come unrounded
