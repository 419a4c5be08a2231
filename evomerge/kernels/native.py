"""The twin of `methods/combine.py` in C++, for a CPU: the same bits, at the speed of memory. The loops are in `native.cpp`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge import kernels
from evomerge.kernels import MOST
from evomerge.kernels.compiled import functions
from evomerge.masks import Ballot, Bands, Drops, Keep, Marks, Ranked, Trim

KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
BINS = 1 << 15  # of magnitudes, see methods/threshold.py
ALL, TRIM, DROP, BAND, RANK = range(5)  # what `keep` asks for
CHUNK = 3 << 15  # of all deltas together whose norm is summed: the specification's, which no bit may differ from
SHARE = 1 << 18  # elements that are worth a thread


class Job(ctypes.Structure):
    """What one call is asked to do with the elements from `start` to before `stop`; field by field as in native.cpp."""

    _fields_ = (
        ("base", ctypes.c_void_p), ("sources", ctypes.c_void_p * MOST), ("merged", ctypes.c_void_p),
        ("base_kind", ctypes.c_int32), ("source_kinds", ctypes.c_int32 * MOST), ("merged_kind", ctypes.c_int32),
        ("start", ctypes.c_int64), ("stop", ctypes.c_int64), ("origin", ctypes.c_int64), ("stride", ctypes.c_int64),
        ("count", ctypes.c_int32), ("subtract", ctypes.c_int32), ("keep", ctypes.c_int32), ("elect", ctypes.c_int32),
        ("weighted", ctypes.c_int32), ("normalize", ctypes.c_int32), ("tie", ctypes.c_int32),
        ("weight", ctypes.c_double * MOST), ("voice", ctypes.c_double * MOST), ("scale", ctypes.c_double),
        ("limit", ctypes.c_float * MOST), ("upper", ctypes.c_float * MOST), ("key", ctypes.c_uint64 * MOST),
        ("ranks", ctypes.c_void_p * MOST), ("chances", ctypes.c_void_p * MOST), ("long_ranks", ctypes.c_int32),
    )  # fmt: skip


def takes(keep: Keep = None, dtype: torch.dtype | None = None) -> bool:
    """Whether the C++ side knows this kind of mask and this dtype of a result."""
    return not isinstance(keep, Marks) and (dtype is None or dtype in KINDS)


def combine(
    base: Tensor | None,
    sources: Sequence[Tensor],
    weight: Sequence[Sequence[float]],  # [K][G]
    *,
    keep: Keep = None,
    ballot: Ballot | None = None,
    scale: Sequence[float] = (1.0,),  # [G]
    subtract: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """base + scale · Σ weightₖ · δₖ: the launcher."""
    first = sources[0] if base is None else base
    merged = _empty(first.shape, dtype or first.dtype)
    request = Request(base, sources, keep, subtract)
    request.write_to(merged)
    jobs, groups = list[Job](), math.lcm(len(scale), *map(len, weight))
    for g in range(groups):
        request.weigh([w[g * len(w) // groups] for w in weight], scale[g * len(scale) // groups], ballot)
        jobs += request.jobs(g * merged.numel() // groups, (g + 1) * merged.numel() // groups)
    run(request.function("combine"), jobs)
    return merged


def norms(base: Tensor | None, sources: Sequence[Tensor], keep: Keep = None, *, subtract: bool = True) -> list[float]:
    """‖δₖ‖₁ of what `keep` keeps; torch adds it up, since the order of a sum is part of its result."""
    request = Request(base, sources, keep, subtract)
    size, step, parts = sources[0].numel(), CHUNK // len(sources), []
    for start in range(0, size, step):
        kept = torch.empty(len(sources), min(step, size - start), dtype=request.dtype)
        request.write_to(kept, start)
        run(request.function("kept"), request.jobs(start, start + kept.shape[1]))
        parts.append(kernels.row_sums(kept.abs_()).tolist())
    return [math.fsum(part[k] for part in parts) for k in range(len(sources))]


def balance(base: Tensor | None, sources: Sequence[Tensor], keep: Keep = None, *, subtract: bool = True) -> float:
    """Σ of the signs that an election without weights elects."""
    request = Request(base, sources, keep, subtract)
    request.weigh([1.0] * len(sources), 1.0, None)
    return math.fsum(run(request.function("balance"), request.jobs(0, sources[0].numel())))


def counts(base: Tensor | None, source: Tensor) -> NDArray[np.int64]:
    """How many magnitudes of source - base lie in each bin, [BINS]."""
    request = Request(base, [source], None, subtract=True)
    tables = np.zeros((4, BINS), np.int64)
    request.function("counts")(request.all(), tables.ctypes.data_as(ctypes.c_void_p))
    counted: NDArray[np.int64] = tables.sum(0)
    return counted


def members(base: Tensor | None, source: Tensor, bin: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Magnitudes and positions of a bin's elements, which are `count`, by position."""
    request = Request(base, [source], None, subtract=True)
    sizes, positions = np.empty(count + 1, np.float32), np.empty(count + 1, np.int64)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (sizes, positions))
    request.function("members")(request.all(), ctypes.c_uint32(bin), *pointers)
    return sizes[:count], positions[:count]


def gram(base: Tensor | None, sources: Sequence[Tensor], *, subtract: bool = True) -> Tensor:
    """⟨δᵢ, δⱼ⟩ of whole tensors, [K, K] in float64: of stretches, whatever the number of threads, and their sum."""
    return torch.from_numpy(gram_of_rows(base, sources, SHARE, subtract=subtract).numpy().sum(0))


def gram_of_rows(base: Tensor | None, sources: Sequence[Tensor], width: int, *, subtract: bool = True) -> Tensor:
    """⟨δᵢ, δⱼ⟩ of each row of `width` elements, [R, K, K] in float64; the last row may be shorter."""
    request, size, count = Request(base, sources, None, subtract), sources[0].numel(), len(sources)
    products = torch.empty(-(-size // width), count, count, dtype=torch.float64)
    function = request.function("gram")

    def some(job: Job) -> None:
        function(ctypes.byref(job), ctypes.c_int64(width), _address(products[job.start // width :]))

    spread(some, request.rows(width))
    return products


def mix_rows(
    base: Tensor | None, sources: Sequence[Tensor], coefficients: Tensor, *, subtract: bool = True, dtype: torch.dtype
) -> Tensor:
    """base + Σ coefficientₖ · δₖ, with `coefficients` for each of R rows, [R, K]."""
    request, merged = Request(base, sources, None, subtract), _empty(sources[0].shape, dtype)
    request.write_to(merged)
    numbers, width = coefficients.to(request.dtype).contiguous(), max(merged.numel() // max(len(coefficients), 1), 1)
    function = request.function("mix")
    spread(lambda job: function(ctypes.byref(job), _address(numbers), ctypes.c_int64(width)), request.rows(width))
    return merged


def ranks(base: Tensor | None, source: Tensor, width: int) -> Tensor:
    """Where each magnitude of source - base stands in its row of `width` elements, from the smallest, 0: [N]."""
    request = Request(base, [source], None, subtract=True)
    found = torch.empty(source.numel(), dtype=torch.int16 if width <= BINS else torch.int32)
    request.job.merged, request.job.long_ranks = found.data_ptr(), found.dtype == torch.int32
    function = request.function("ranks")

    def some(job: Job) -> None:
        room = torch.empty(3 * width, dtype=torch.int32)
        function(ctypes.byref(job), ctypes.c_int64(width), _address(room))

    spread(some, request.rows(width))
    return found


def finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    request, compiled = Request(None, [tensor], None, subtract=False), functions()
    assert compiled is not None
    return all(spread(lambda job: compiled.all_finite(ctypes.byref(job)), request.rows(1)))


class Request:
    """Tensors and numbers as the C++ side reads them; it holds the tensors as long as it lives."""

    def __init__(self, base: Tensor | None, sources: Sequence[Tensor], keep: Keep, subtract: bool) -> None:
        self.base = None if base is None else base.contiguous()
        self.sources = [source.contiguous() for source in sources]
        self.trims: Sequence[Trim] = ()
        self.inner: Sequence[Trim] = ()
        tensors = self.sources if self.base is None else [self.base, *self.sources]
        self.dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        self.job = Job(count=len(self.sources), subtract=subtract and base is not None, keep=ALL, scale=1.0)
        if self.base is not None:
            self.job.base, self.job.base_kind = self.base.data_ptr(), KINDS[self.base.dtype]
        self.job.sources[:] = _filled([source.data_ptr() for source in self.sources])
        self.job.source_kinds[:] = _filled([KINDS[source.dtype] for source in self.sources])
        self.rescale: Sequence[float] = [1.0] * len(self.sources)
        if isinstance(keep, (Drops, Bands, Ranked)):
            self.rescale = keep.rescale
        if isinstance(keep, Drops):
            self.job.keep, self.job.limit[:] = DROP, _filled(keep.rates)
            self.job.key[:] = _filled(keep.keys)
        elif isinstance(keep, Ranked):
            self._rank(keep)
        elif isinstance(keep, Bands):
            self.job.keep, self.trims, self.inner = BAND, keep.outer, keep.inner
        elif isinstance(keep, Sequence):
            self.job.keep, self.trims = TRIM, keep

    def _rank(self, keep: Ranked) -> None:
        self.ranks, self.chances = [ranks.contiguous() for ranks in keep.ranks], keep.chances.contiguous()
        self.job.keep, self.job.long_ranks = RANK, self.ranks[0].dtype == torch.int32
        self.job.key[:] = _filled(keep.keys)
        self.job.ranks[:] = _filled([ranks.data_ptr() for ranks in self.ranks])
        self.job.chances[:] = _filled([chances.data_ptr() for chances in self.chances])

    def write_to(self, merged: Tensor, origin: int = 0) -> None:
        """Where the result goes; what is kept of each delta goes to a row of it, from column 0 for position `origin`."""
        self.job.merged, self.job.merged_kind = merged.data_ptr(), KINDS[merged.dtype]
        self.job.origin, self.job.stride = origin, merged.shape[-1] if merged.ndim else 1

    def weigh(self, weight: Sequence[float], scale: float, ballot: Ballot | None) -> None:
        """The numbers of one group of rows."""
        job, pairs = self.job, list(zip(weight, self.rescale, strict=True))
        job.weight[:] = _filled(weight)
        if ballot is None:
            job.voice[:] = _filled([w * r * scale for w, r in pairs])
            return
        job.voice[:], job.scale = _filled([w * r if ballot.weighted else r for w, r in pairs]), scale
        job.elect, job.weighted, job.normalize, job.tie = True, ballot.weighted, ballot.normalize, ballot.tie

    def all(self) -> Any:
        """All elements as one job."""
        self.job.start, self.job.stop = 0, self.sources[0].numel()
        return ctypes.byref(self.job)

    def jobs(self, first: int, last: int) -> Iterator[Job]:
        """Stretches in which each source has one limit, and which are enough for every thread."""
        ends = {trim.last + 1 for trim in (*self.trims, *self.inner)} | {*range(first, last, self._share(last - first)), last}
        begin = first
        for end in sorted(end for end in ends if first < end <= last):
            job = Job.from_buffer_copy(self.job)
            job.start, job.stop = begin, end
            if self.trims:
                job.limit[:] = _filled([trim.floor if begin <= trim.last else trim.magnitude for trim in self.trims])
            if self.inner:
                job.upper[:] = _filled([trim.floor if begin <= trim.last else trim.magnitude for trim in self.inner])
            yield job
            begin = end

    def rows(self, width: int) -> list[Job]:
        """Jobs of whole rows, which are enough for every thread."""
        size = self.sources[0].numel()
        step, jobs = max(self._share(size) // width, 1) * width, list[Job]()
        for start in range(0, size, step):
            jobs.append(Job.from_buffer_copy(self.job))
            jobs[-1].start, jobs[-1].stop = start, min(start + step, size)
        return jobs

    def _share(self, size: int) -> int:
        """Elements of a job: a multiple of 4, that random numbers are not drawn twice."""
        return max(SHARE, -(-size // torch.get_num_threads()) + 3 & ~3)

    def function(self, name: str) -> Any:
        compiled = getattr(functions(), f"{name}_{str(self.dtype).removeprefix('torch.')}")
        compiled.restype = ctypes.c_double if name == "balance" else None
        return compiled


def _empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    tensor = kernels.result(shape, dtype, torch.device("cpu"))
    compiled = functions()
    if compiled is not None:
        compiled.huge_pages(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.nbytes))
    return tensor


def run(function: Any, jobs: Iterable[Job]) -> list[Any]:
    """Every job, on as many threads as torch has."""
    pending = list(jobs)
    return spread(lambda job: function(ctypes.byref(job)), pending)


def spread(function: Callable[[Job], Any], jobs: Sequence[Job]) -> list[Any]:
    """The function of every job, on as many threads as torch has; ctypes lets go of the interpreter meanwhile."""
    count = torch.get_num_threads()
    if count == 1 or sum(job.stop - job.start > SHARE // 2 for job in jobs) < 2:
        return [function(job) for job in jobs]
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(function, jobs))


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _filled(numbers: Sequence[Any]) -> list[Any]:
    return [*numbers, *[0] * (MOST - len(numbers))]
