"""Where the models of a search stay between candidates: on the device, pinned beside it, or on the disk they came from.

A step of a plan (a tensor of the base and of each source) stays on the device as a whole, or is carried there for each
candidate: see conveyor.py. What fits is laid out once, in the order of the plan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Key = tuple[str, str]  # a model's location, a tensor's name
Place = Literal["device", "pinned", "disk"]
SHARE = 0.9  # of what is free when the first candidate is merged: the rest is for results and whoever else grows
HOST_SHARE = 0.5  # other workers of this machine pin their own
BATCH = 1 << 30  # bytes carried to the device at a time, if a step has no more


@dataclass(frozen=True)
class Load:
    """What one step needs: the bytes of each of its tensors, and those of what is kept beside them."""

    tensors: Mapping[Key, int]
    beside: int = 0


@dataclass
class Room:
    """Bytes that may be taken on the device, and in the memory beside it."""

    device: int
    host: int = 0

    @classmethod
    def of(cls, device: torch.device) -> Room:
        """A share of what is free now; a CPU has no memory beside its own."""
        if device.type == "cuda":
            return cls(int(SHARE * torch.cuda.mem_get_info(device)[0]), int(HOST_SHARE * free_memory()))
        return cls(int(SHARE * free_memory()))


@dataclass
class Shelf:
    """The tensors that stay, and where each of those that were asked for belongs; without `room` it is measured when needed."""

    device: torch.device
    room: Room | None = None
    places: dict[Key, Place] = field(default_factory=dict)
    tensors: dict[Key, Tensor] = field(default_factory=dict)

    @property
    def streams(self) -> bool:
        """Whether anything is carried to the device for each candidate."""
        return self.carries(self.places)

    def carries(self, keys: Iterable[Key]) -> bool:
        """Whether any of these tensors is."""
        return any(self.places.get(key, "device") != "device" for key in keys)

    def assign(self, loads: Sequence[Load]) -> None:
        """A place for every tensor that has none yet; one line is logged where the device does not hold them all."""
        fresh = [Load({key: size for key, size in load.tensors.items() if key not in self.places}, load.beside) for load in loads]
        fresh = [load for load in fresh if load.tensors]
        if not fresh:
            return
        self.room = self.room or Room.of(self.device)
        needed, free = sum(map(_bytes, fresh)), self.room.device
        if needed > free and self.device.type == "cuda":  # two batches are under way, one merged and one carried
            self.room.device = max(free - 2 * max(BATCH, *(sum(load.tensors.values()) for load in loads)), 0)
        held = dict.fromkeys(("device", "pinned", "disk"), 0)
        for load in fresh:
            place = self._place(load)
            held[place] += _bytes(load) if place == "device" else sum(load.tensors.values())
            self.places |= dict.fromkeys(load.tensors, place)
        if needed > free:
            logging.getLogger("evomerge").warning(describe(needed, free, held, self.device))

    def _place(self, load: Load) -> Place:
        assert self.room is not None
        size = sum(load.tensors.values())
        if _bytes(load) <= self.room.device:
            self.room.device -= _bytes(load)
            return "device"
        if size <= self.room.host:
            self.room.host -= size
            return "pinned"
        return "disk"

    def put(self, key: Key, tensor: Tensor) -> Tensor:
        """The tensor where it is to stay: a copy that outlives changes to its file, or itself where it is not kept."""
        place = self.places.get(key, "device")
        if place == "disk":
            return tensor
        self.tensors[key] = tensor.to(self.device, copy=True) if place == "device" else pinned(tensor)
        return self.tensors[key]


def describe(needed: int, free: int, held: Mapping[str, int], device: torch.device) -> str:
    """What is needed and free, and what happens instead."""
    instead = [f"{gigabytes(held['device'])} stay there"]
    if held["pinned"]:
        instead.append(f"{gigabytes(held['pinned'])} wait in pinned memory and are copied while what came before is merged")
    if held["disk"]:
        instead.append(f"{gigabytes(held['disk'])} are read from the disk anew for each candidate")
    return (
        f"sources need {gigabytes(needed)} on {device}, {gigabytes(free)} may be taken: {', '.join(instead)};"
        " candidates take longer, their bytes are the same"
    )


def gigabytes(size: int) -> str:
    """As a reader wants it: 70 GB, 1.4 GB, 3.2 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.3g} {unit}" if size < 1000 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size} bytes"


def pinned(tensor: Tensor) -> Tensor:
    """A copy in memory that a GPU reads by itself; an ordinary one where there is no GPU."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor.clone()


def free_memory() -> int:
    """Bytes of this machine's memory that are free, or of its container's where that has fewer."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, max(int(most) - int(used.read_text()), 0))
    return free


def _bytes(load: Load) -> int:
    return sum(load.tensors.values()) + load.beside
