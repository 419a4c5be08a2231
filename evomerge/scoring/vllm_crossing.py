"""How a candidate comes to the ranks of an engine: within one process as its stream, between processes as its recipe.

A few kilobytes cross instead of gigabytes: every rank merges for itself, from sources that stay where it is. What no recipe
tells, a distilled candidate, crosses as a file in memory.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.candidate.save import save
from evomerge.candidate.stored import Stored, from_disk
from evomerge.candidate.stream import TORCH_DTYPES, Candidate, Merge, Sources, materialize
from evomerge.document import Place
from evomerge.errors import CheckpointError
from evomerge.recipe import Recipe

MEMORY = Path("/dev/shm")  # a disk in memory, where there is one
Parcel = Mapping[str, Any]


@contextlib.contextmanager
def crossing(candidate: Candidate, ranks: int) -> Iterator[Parcel]:
    """What to hand to every rank; valid within the block. In one process it is the stream itself."""
    weights = candidate.weights
    if ranks == 1:
        yield {"weights": announced(candidate)}
    elif isinstance(weights, Merge):
        yield {"recipe": weights.recipe.to_data(), "key": candidate.key}
    elif isinstance(weights, Stored):
        yield {"folder": weights.location}
    else:
        with tempfile.TemporaryDirectory(prefix="evomerge-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
            yield {"folder": str(save(candidate, Path(folder) / "model"))}


class Arrivals:
    """The other side: what a rank makes of a parcel. Its sources stay in memory for the next one."""

    def __init__(self, device: torch.device) -> None:
        self.sources = Sources(resident=True, device=device)

    def unpack(self, parcel: Parcel) -> Iterator[tuple[str, Tensor]]:
        """The candidate's tensors. Raises CheckpointError where they are not those that were sent."""
        if "weights" in parcel:
            return iter(parcel["weights"])
        if "folder" in parcel:
            return announced(from_disk(parcel["folder"]))
        candidate = materialize(Recipe.from_data(parcel["recipe"], Place("recipe")), self.sources)
        if candidate.key != parcel["key"]:
            raise CheckpointError("candidate: its sources differ from process to process; were they changed during the search?")
        return announced(candidate)


def announced(candidate: Candidate) -> Iterator[tuple[str, Tensor]]:
    """The stream, held to its manifest: vLLM only warns of a tensor that does not come, and keeps the one of before."""
    left = dict(candidate.manifest)
    for name, tensor in candidate.weights:
        info = left.pop(name, None)
        if info is None or tuple(tensor.shape) != info.shape or tensor.dtype != TORCH_DTYPES[info.dtype]:
            raise CheckpointError(f"candidate: {name!r} comes as {tensor.dtype} {list(tensor.shape)}, it was announced as {info}")
        yield name, tensor
    if left:
        raise CheckpointError(f"candidate: {next(iter(left))!r} was announced and did not come")
