"""Where a live engine keeps each tensor of a checkpoint, so that a candidate can be merged straight into it.

vLLM's own loader knows: it is watched once, at work with a candidate that the engine holds already. A tensor that lies there as
it came, in one piece, has its place, be it a few rows of a larger one. Layers that keep their weights in another layout, packed
or quantised, are left to vLLM's loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evomerge.candidate import live
from evomerge.candidate.stream import Candidate, Weights
from evomerge.scoring.vllm_crossing import announced

if TYPE_CHECKING:
    from torch import nn

Places = Mapping[str, Tensor]


def find_places(model: nn.Module, held: Candidate) -> Places | None:
    """The memory of each tensor of the candidate that the model holds; None where not all of them lie there as they came.

    Nothing is written: a copy that would change anything ends the search for places before it is made.
    """
    memory = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    if any(parameter.numel() == 0 for parameter in model.parameters()):  # thrown away once its packed copy was made
        return None
    watch = _Watch(memory)
    try:
        with watch:
            model.load_weights(watch.seen(announced(held)))  # type: ignore[operator]  # every model of vLLM has it
    except Exception:  # a loader that meets another layout says so in words of its own
        return None
    return watch.places


def fill(places: Places, candidate: Candidate) -> None:
    """Merges the candidate into its places. Raises CheckpointError where what comes is not what was announced."""
    live.fill(announced(live.into(candidate, places)), places)


def stirred(candidate: Candidate) -> Candidate:
    """Another one of the same shape, each of whose tensors differs from the candidate's own."""
    return replace(candidate, weights=_Stirred(candidate.weights))


class _Stirred:
    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.weights:
            yield name, tensor + tensor.roll(1, 0) / 8 if tensor.is_floating_point() and tensor.ndim else tensor


class _Layout(Exception):
    """The engine keeps something otherwise than it came."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for its making
    """Sees which memory each tensor of a stream is copied to, and lets nothing of the model be changed."""

    def __init__(self, memory: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor for this
        self.memory, self.sent, self.places = memory, dict[int, tuple[str, Tensor]](), dict[str, Tensor]()

    def seen(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self.sent[tensor.data_ptr()] = name, tensor
            yield name, tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].untyped_storage().data_ptr() in self.memory:
            self._place(args[0], args[1])
            return args[0]
        return func(*args, **(kwargs or {}))

    def _place(self, place: Tensor, source: Tensor) -> None:
        name, whole = self.sent.get(source.data_ptr(), ("", source))
        if not name or name in self.places or place.shape != whole.shape or not place.equal(whole.to(place)):
            raise _Layout
        self.places[name] = place
