"""Each kernel beside its reference and beside a plain copy: first whether they agree, then how fast they are."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from evomerge import kernels
from evomerge.bench import machine
from evomerge.bench.cases import (
    COUNTS,
    DENSITY,
    GAMMA,
    METHODS,
    RATE,
    SHAPES,
    WINDOW,
    Tensors,
    call,
    moved,
    options,
    plain,
    specified,
)
from evomerge.bench.model import LLAMA, bench_model
from evomerge.bench.timing import RUNS, timed
from evomerge.errors import EvomergeError, MissingExtra

ANGLES = ("slerp", "model_stock")  # whose result depends on all elements
HEAD = (1 << 17) + 1  # elements that are compared with float64
CPU_SHAPES = ("7B q_proj",)


def bench_kernels(
    shapes: Sequence[str] | None = None, counts: Sequence[int] = COUNTS, methods: Sequence[str] = METHODS
) -> Iterator[str]:
    """Lines of a table, one for each method, number of sources and shape. Raises EvomergeError where a pair disagrees."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast = _fast_side(device)
    yield header(device, fast)
    for shape in shapes or (SHAPES if device == "cuda" else CPU_SHAPES):
        copied = copy_speed(shape, device)
        yield f"{shape} {list(SHAPES[shape])}, bf16: a copy {copied / 1e9:,.1f} GB/s"
        for count, method in product(counts, methods):
            if method != "slerp" or count == counts[0]:
                given = Tensors.make(SHAPES[shape], 1 if method == "slerp" else count, torch.bfloat16, device)
                yield row(method, given, fast, copied)
    if device == "cuda" and not shapes:
        yield from bench_model(LLAMA, fast)


def row(method: str, given: Tensors, fast: kernels.Backend, copied: float) -> str:
    """One line: the pair is compared, then timed."""
    asked = options(method, given)
    check(method, given, asked, fast)
    merge = call(method, given, asked)
    with kernels.backend(fast):
        seconds = timed(merge)
    written = plain(method, given, asked)
    eager = timed(lambda: written(given.base, *given.sources))
    size, speed = given.base.numel(), moved(method, given) / seconds
    others = [f"torch {_each(eager, size)}", f"torch.compile {_compiled(written, given)}"]
    others += [f"mergekit {_each(timed(theirs), size)}"] if (theirs := _mergekit(method, given)) else []
    return (
        f"  {method:<12} K={len(given.sources)}  {fast} {_each(seconds, size)}, {speed / 1e9:,.1f} GB/s, "
        f"{100 * speed / copied:.0f} % of the copy | {' | '.join(others)}"
    )


def check(method: str, given: Tensors, asked: dict[str, object], fast: kernels.Backend) -> None:
    """Raises EvomergeError if a kernel is further from float64 than twice the reference's own distance, or elsewhere wrong."""
    head, exact = given.head(HEAD, given.base.dtype), given.head(HEAD, torch.float64)
    with kernels.backend("torch"):
        truth = call(method, exact, asked, torch.float64)()
        reference = call(method, head, asked, torch.float32)().double()
    with kernels.backend(fast):
        kernel, other = call(method, head, asked, torch.float32)().double(), call(method, given, asked)().view(-1)
    far, allowed = float((kernel - truth).norm()), float(2 * (reference - truth).norm() + 1e-9 * truth.norm())
    if not far <= allowed:
        raise EvomergeError(f"bench: {fast} {method} is {far:.3g} from float64, allowed {allowed:.3g}; not timed, run make test")
    for stretch in stretches(other.numel()):
        with kernels.backend("torch"):
            plainly = specified if method not in ANGLES else _whole
            whole = plainly(method, given, asked, stretch).to(other.dtype)
        if not torch.allclose(other[stretch], whole, rtol=2**-7, atol=1e-6):  # one step of bfloat16
            where = f"{method} of {list(given.base.shape)}"
            raise EvomergeError(f"bench: {fast} {where} differs from torch; not timed, run make test")


def _whole(method: str, given: Tensors, asked: dict[str, object], stretch: slice) -> Tensor:
    return call(method, given, asked)().view(-1)[stretch]


def stretches(size: int) -> list[slice]:
    """The beginning, the middle and the end."""
    return [slice(start, min(start + HEAD, size)) for start in (0, max(size // 2 - HEAD, 0), max(size - HEAD, 0))]


def copy_speed(shape: str, device: str) -> float:
    """Bytes read and written a second by a plain copy of a tensor of this shape."""
    source = torch.ones(SHAPES[shape], dtype=torch.bfloat16, device=device)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source))


def header(device: str, fast: kernels.Backend) -> str:
    """Where and how this is measured."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}; median of up to {RUNS} runs; fast side: {fast}"
    count = torch.get_num_threads()
    how = "one thread, by its CPU time" if count == 1 else f"{count} threads, by the wall"
    return f"{machine()}, torch {torch.__version__}, {how}; best of up to {RUNS} runs; fast side: {fast}"


def _fast_side(device: str) -> kernels.Backend:
    side = kernels.side(torch.zeros(1, device=device))
    if side == "torch":
        missing = "triton: pip install triton" if device == "cuda" else "a C++ compiler: apt install g++"
        raise MissingExtra(f"bench kernels: nothing to compare with torch; install {missing}")
    return side


def _each(seconds: float, size: int) -> str:
    return f"{1e9 * seconds / size:.2f} ns" if math.isfinite(seconds) else "-"


def _compiled(written: Callable[..., Tensor], given: Tensors) -> str:
    """torch.compile, where it works."""
    try:
        compiled = torch.compile(written, dynamic=False)
        return _each(timed(lambda: compiled(given.base, *given.sources)), given.base.numel())
    except Exception as reason:  # a compiler that is not there fails in many ways
        return f"failed ({type(reason).__name__})"
    finally:
        torch.compiler.reset()


def _mergekit(method: str, given: Tensors) -> Callable[[], Tensor] | None:
    """mergekit's own function on the same tensors; it trims and draws anew at every call."""
    if importlib.util.find_spec("mergekit") is None:
        return None
    from mergekit.merge_methods import merge_tensors

    count = len(given.sources)
    if method == "linear":
        return lambda: merge_tensors(list(given.sources), method, parameters={"weight": [1 / count] * count})
    shared: dict[str, object] = {"weight": [1 / count] * count, "density": [DENSITY] * count}
    asked: dict[str, dict[str, object]] = {
        "slerp": {"t": 0.3},
        "model_stock": {"filter_wise": False},
        "breadcrumbs": {**shared, "gamma": [GAMMA] * count},
        "della": {**shared, "epsilon": [WINDOW] * count},
        "ties": shared,
    }
    numbers = asked.get(method, {**shared, "density": [1 - RATE] * count})
    return lambda: merge_tensors([given.base, *given.sources], method, base_index=0, parameters=numbers)
