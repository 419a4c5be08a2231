"""Fast twins of `methods/`: Triton on a GPU, C++ on a CPU. Each has the name and the signature of its plain reference."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from evomerge.errors import MissingExtra
from evomerge.kernels.compiled import functions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Backend = Literal["torch", "native", "triton"]
DTYPES = ("torch.bfloat16", "torch.float16", "torch.float32")
MOST = 16  # sources of one merge
TWINS: dict[Backend, dict[str, str]] = {  # where each function's twin stands
    "torch": {},
    "native": dict.fromkeys(
        ("combine", "norms", "balance", "counts", "members", "ranks", "gram", "gram_of_rows", "mix_rows", "finite"),
        "evomerge.kernels.native",
    )
    | {"largest": "evomerge.kernels.select"},
    "triton": {
        **dict.fromkeys(("combine", "norms", "balance"), "evomerge.kernels.combine"),
        **dict.fromkeys(("counts", "members"), "evomerge.kernels.threshold"),
        **dict.fromkeys(("gram", "gram_of_rows", "mix_rows"), "evomerge.kernels.vectors"),
    },
}
_forced: ContextVar[Backend | None] = ContextVar("backend", default=None)
_waiting: ContextVar[list[Any] | None] = ContextVar("waiting", default=None)
_target: ContextVar[list[Any] | None] = ContextVar("target", default=None)


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Everything inside runs on this side where it can: `torch`, `native` (C++), or `triton` (on a CPU: TRITON_INTERPRET=1)."""
    if name == "triton" and not available():
        raise MissingExtra("triton is not installed: pip install triton, or use backend('torch')")
    if name == "native" and functions() is None:
        raise MissingExtra("the C++ side is not there: install a C++ compiler (apt install g++), or use backend('torch')")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def together() -> Iterator[None]:
    """Tensors merged by a Triton kernel inside are launched at the end, all of a kind at once; read none of them before."""
    jobs: list[Any] = []
    token = _waiting.set(jobs)
    try:
        yield
    finally:
        _waiting.reset(token)
    if jobs:
        importlib.import_module("evomerge.kernels.combine").launch(jobs)


@contextmanager
def into(target: Tensor | None) -> Iterator[None]:
    """The first result inside that this tensor can hold is written into its memory; ask `same_memory` whether one was."""
    token = _target.set(None if target is None else [target])
    try:
        yield
    finally:
        _target.reset(token)


def result(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a result is written into: the target that somebody named, once, or new memory."""
    import torch

    if (targets := _target.get()) and _holds(targets[0], shape, dtype, device):
        target: Tensor = targets.pop()
        return target.detach().view(shape)
    return torch.empty(shape, dtype=dtype, device=device)


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same elements."""
    return one.data_ptr() == other.data_ptr() and one.dtype == other.dtype and one.numel() == other.numel()


def _holds(target: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> bool:
    fits = target.dtype == dtype and target.device == device and target.numel() == math.prod(shape)
    return fits and target.is_contiguous() and target.numel() > 0


def row_sums(rows: Tensor) -> Tensor:
    """Σ of each row of [K, n]: the same bits with any number of threads, among which torch divides a sum with a single result."""
    return rows.sum(1) if len(rows) > 1 else rows.expand(2, -1).sum(1)[:1]


def waiting() -> list[Any] | None:
    """The jobs that are to be launched together, where somebody asked for it."""
    return _waiting.get()


def side(*tensors: Tensor) -> Backend:
    """Which side takes these tensors: the one that is forced, else triton on a CUDA device, native on a CPU; torch the rest."""
    wanted = _forced.get() or ("triton" if tensors[0].is_cuda else "native")
    if wanted == "triton":
        return "triton" if available() and all(str(tensor.dtype) in DTYPES for tensor in tensors) else "torch"
    if wanted == "native" and all(_plain(tensor) for tensor in tensors):
        return "native" if functions() is not None else "torch"
    return "torch"


def twin(
    name: str, base: Tensor | None, sources: Sequence[Tensor], keep: object = None, dtype: torch.dtype | None = None
) -> Callable[..., Any] | None:
    """The fast function of this name, if one takes these tensors, this kind of mask and this dtype of the result."""
    tensors = [*sources] if base is None else [base, *sources]
    there = TWINS[side(*tensors)].get(name)
    if there is None or len(sources) > MOST or len({tensor.numel() for tensor in tensors}) > 1:
        return None
    module = importlib.import_module(there)
    takes = getattr(module, "takes", None)
    return getattr(module, name) if takes is None or takes(keep, dtype) else None


def usable(*tensors: Tensor) -> bool:
    """Whether a Triton kernel takes these tensors."""
    return side(*tensors) == "triton"


def _plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and (str(tensor.dtype) in DTYPES or str(tensor.dtype) == "torch.float64")


@cache
def available() -> bool:
    """Whether triton is installed."""
    return importlib.util.find_spec("triton") is not None
