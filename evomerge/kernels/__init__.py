"""Triton kernels: each file has the name and the signature of its reference in `methods/`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Literal

from evomerge.errors import MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.masks import Keep

Backend = Literal["torch", "triton"]
DTYPES = ("torch.bfloat16", "torch.float16", "torch.float32")  # float64 stays with torch
_forced: ContextVar[Backend | None] = ContextVar("backend", default=None)


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Everything inside runs on this side: `torch`, or `triton` (on CPU tensors under TRITON_INTERPRET=1)."""
    if name == "triton" and not available():
        raise MissingExtra("triton is not installed: pip install triton, or use backend('torch')")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def usable(*tensors: Tensor) -> bool:
    """Whether a kernel takes these tensors: on a CUDA device, or where a test has forced it."""
    forced = _forced.get()
    if forced == "torch" or not (forced == "triton" or tensors[0].is_cuda):
        return False
    return available() and all(str(tensor.dtype) in DTYPES for tensor in tensors)


def takes(keep: Keep) -> bool:
    """Whether a kernel knows this way of sparsifying; torch knows all."""
    from evomerge.masks import Drops

    return keep is None or isinstance(keep, (Drops, Sequence))


@cache
def available() -> bool:
    """Whether triton is installed."""
    return importlib.util.find_spec("triton") is not None
