"""A whole model of a 7B's shapes, merged again and again from resident sources: what a candidate of a search costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge import kernels
from evomerge.bench.cases import Tensors, call, moved, options, specified
from evomerge.bench.timing import timed
from evomerge.errors import EvomergeError

Shapes = Mapping[str, tuple[int, ...]]
COUNT = 3  # experts
END = 1 << 14  # elements of each tensor that are compared
WHOLE = ("linear", "ties", "dare_ties")


def llama(vocabulary: int, hidden: int, inner: int, layers: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama without grouped queries."""
    ends = {"embed_tokens": (vocabulary, hidden), "lm_head": (vocabulary, hidden), "norm": (hidden,)}
    shapes: dict[str, tuple[int, ...]] = dict(ends)
    for layer in range(layers):
        shapes |= {f"{layer}.{name}_proj": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{layer}.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{layer}.down_proj": (hidden, inner), f"{layer}.input_norm": (hidden,), f"{layer}.post_norm": (hidden,)}
    return shapes


LLAMA = llama(32000, 4096, 11008, 32)  # Llama 2 7B


@dataclass(frozen=True)
class Model:
    """Every tensor of a base and of its experts, random, and where a merge of them is written."""

    tensors: Sequence[Tensors]
    targets: Sequence[Tensor]

    @classmethod
    def make(cls, shapes: Shapes, count: int, device: str) -> Model:
        tensors = [Tensors.make(shape, count, torch.bfloat16, device) for shape in shapes.values()]
        return cls(tensors, [torch.empty_like(given.base) for given in tensors])

    def merge(self, method: str, asked: Sequence[dict[str, object]]) -> None:
        """All tensors into their targets, each kind of job in one launch."""
        with kernels.together():
            for given, target, each in zip(self.tensors, self.targets, asked, strict=True):
                with kernels.into(target):
                    if not kernels.same_memory(call(method, given, each)(), target):
                        raise EvomergeError(f"bench: {method} was not written into the model's memory; not timed, run make test")


def bench_model(shapes: Shapes, fast: kernels.Backend, methods: Sequence[str] = WHOLE) -> Iterator[str]:
    """A line for each method: milliseconds of a whole merge, and how many times what a copy of as many bytes takes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Model.make(shapes, COUNT, device)
    size = sum(math.prod(shape) for shape in shapes.values())
    largest = max(model.targets, key=torch.numel)
    other = torch.zeros_like(largest)
    copied = 2 * largest.nbytes / timed(lambda: other.copy_(largest))
    yield f"a whole model, {len(shapes)} tensors, {size:,} parameters, {COUNT} experts, bf16: a copy {copied / 1e9:,.1f} GB/s"
    for method in methods:
        asked = [options(method, given) for given in model.tensors]
        _check(model, method, asked, fast)
        with kernels.backend(fast):
            seconds = timed(lambda: model.merge(method, asked))  # noqa: B023
        ideal = sum(moved(method, given) for given in model.tensors) / copied
        yield f"  {method:<12} {1000 * seconds:,.1f} ms, {seconds / ideal:.2f} times the {1000 * ideal:,.1f} ms of a copy's bytes"


def _check(model: Model, method: str, asked: Sequence[dict[str, object]], fast: kernels.Backend) -> None:
    """Raises EvomergeError if any tensor of the merged model ends otherwise than plain torch has it, by a step of bfloat16."""
    for target in model.targets:
        target.fill_(math.nan)
    with kernels.backend(fast):
        model.merge(method, asked)
    for given, target, each in zip(model.tensors, model.targets, asked, strict=True):
        end = slice(max(target.numel() - END, 0), target.numel())
        with kernels.backend("torch"):
            plain = specified(method, given, each, end).to(target.dtype).float()
        near = torch.allclose(target.view(-1)[end].float(), plain, rtol=2**-7, atol=1e-6)
        if not near or target.isnan().any():
            where = f"{method} of {list(target.shape)}"
            raise EvomergeError(f"bench: {fast} {where} in a whole model is wrong; not timed, run make test")
