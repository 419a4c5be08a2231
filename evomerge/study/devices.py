"""Which devices each worker has to itself: an engine has its own GPUs, and none of them two engines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evomerge.errors import ScoringError
from evomerge.scoring import ScoringConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"
MOST_WORKERS = 8  # on a CPU, unless told otherwise


@dataclass(frozen=True)
class Seat:
    """What one worker has: the GPUs that it sees (none: whatever is there), and how many ranks its engine has."""

    devices: tuple[str, ...] = ()
    ranks: int = 1

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """A process that is started within sees these devices and no others."""
        before = os.environ.get(VISIBLE)
        if self.devices:
            os.environ[VISIBLE] = ",".join(self.devices)
        try:
            yield
        finally:
            if self.devices:
                os.environ.pop(VISIBLE)
                if before is not None:
                    os.environ[VISIBLE] = before


def seats(scoring: ScoringConfig, workers: int | None = None, devices: Sequence[str] | None = None) -> list[Seat]:
    """A seat for each worker; as many as the devices allow where no number is given: `devices` are those that are visible.

    Raises ScoringError where an engine would have too few devices, or share one.
    """
    devices, ranks = gpus() if devices is None else devices, scoring.ranks
    if not devices:
        return [Seat(ranks=ranks)] * (workers or max(min(_cores(), MOST_WORKERS) // ranks, 1))
    if ranks > len(devices):
        raise ScoringError(
            f"scoring.engine: {ranks} ranks need {ranks} GPUs, {len(devices)} are here;"
            " lower tensor_parallel_size or pipeline_parallel_size"
        )
    most = len(devices) // ranks
    count = workers or most
    if scoring.scorer == "vllm" and count > most:
        raise ScoringError(
            f"--workers {count}: {len(devices)} GPUs hold {most} engines of {ranks} each, no GPU holds two; leave --workers out"
        )
    if count == 1 or scoring.device not in ("auto", "cuda"):  # a device named in the file is meant as it stands
        return [Seat(ranks=ranks)] * count
    return [Seat(tuple(devices[w % most * ranks :][:ranks]), ranks) for w in range(count)]


def gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA knows them by."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get(VISIBLE)
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def describe(scoring: ScoringConfig, taken: Sequence[Seat]) -> str:
    """One line on who scores where, for `--dry-run`."""
    ranks = taken[0].ranks
    engine = f", each an engine of {ranks} ranks" if ranks > 1 else ", each with an engine of its own"
    who = f"{len(taken)} worker{'s' * (len(taken) > 1)}{engine if scoring.scorer == 'vllm' else ''}"
    if any(seat.devices for seat in taken):
        return f"{who}, on GPUs {' | '.join(','.join(seat.devices) for seat in taken)}"
    found = gpus()
    return f"{who}, on " + (f"GPU {','.join(found[:ranks])}" if found else f"the CPU ({_cores()} cores)")


def _cores() -> int:
    return len(os.sched_getaffinity(0))
