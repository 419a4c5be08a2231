"""Tensors on their way to the device, a batch ahead of who merges them: copies and merges go on at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

from evomerge.candidate.placement import Key, pinned

Batch = TypeVar("Batch")
Fetch = Callable[[Batch], Mapping[Key, Tensor]]
Carried = tuple[dict[Key, Tensor], "torch.cuda.Event | None"]


class Conveyor(Generic[Batch]):
    """Two batches are under way at most: the one that is merged, and the next, which a thread fetches and copies."""

    def __init__(self, device: torch.device, fetch: Fetch[Batch]) -> None:
        self.device, self.fetch = device, fetch
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch has no types for it

    def run(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Mapping[Key, Tensor]]]:
        """Each batch with its tensors on the device."""
        ahead, merged = deque[tuple[Batch, Future[Carried]]](), None
        with ThreadPoolExecutor(1) as hand:
            for batch in batches:
                ahead.append((batch, hand.submit(self._carry, batch, merged)))
                if len(ahead) == 2:
                    yield self._arrived(*ahead.popleft())
                    merged = self._event()
            while ahead:
                yield self._arrived(*ahead.popleft())

    def _carry(self, batch: Batch, merged: torch.cuda.Event | None) -> Carried:
        """In the thread: copies on a stream of their own, once there is room because the batch before last is merged."""
        if self.stream is None:
            return {key: tensor.to(self.device, copy=True) for key, tensor in self.fetch(batch).items()}, None
        if merged is not None:
            merged.synchronize()
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            host = {key: tensor if tensor.is_pinned() else pinned(tensor) for key, tensor in self.fetch(batch).items()}
            return {key: tensor.to(self.device, non_blocking=True) for key, tensor in host.items()}, self.stream.record_event()

    def _arrived(self, batch: Batch, future: Future[Carried]) -> tuple[Batch, Mapping[Key, Tensor]]:
        tensors, copied = future.result()
        if copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            for tensor in tensors.values():
                tensor.record_stream(current)  # its memory is not given away before this stream is done with it
        return batch, tensors

    def _event(self) -> torch.cuda.Event | None:
        """That everything launched so far is done."""
        return None if self.stream is None else torch.cuda.current_stream(self.device).record_event()
