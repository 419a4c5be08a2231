"""An earlier study as the start of a new one: its best recipe, carried over by the names of the parameters."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import StudyError
from evomerge.recipe import Curve
from evomerge.space import Parameter, Space
from evomerge.study.journal import read_trials
from evomerge.study.record import Record

FILE = "warm_start.json"


@dataclass(frozen=True)
class Carried:
    """A beginning that came from elsewhere: of which study and trial, and how many of the space's parameters it knew."""

    study: str
    trial: str
    start: Mapping[str, Any]


def carried(directories: Sequence[Path], space: Space) -> list[Carried]:
    """The incumbent of each study, and of several the median as well. Raises StudyError where one has nothing to give."""
    found = [_of(directory, space) for directory in directories]
    if len(found) > 1:
        shared = [name for name in found[0].start if all(name in each.start for each in found)]
        numbers = {p.name for p in space.parameters if not p.options}
        middle = {n: statistics.median(float(each.start[n]) for each in found) for n in shared if n in numbers}
        if middle:
            found.append(Carried("all of them", "median", {**found[0].start, **middle}))
    return found


def kept(record: Record, directories: Sequence[Path], space: Space) -> list[Carried]:
    """The same, noted in the study's record: a study goes on from what it began with, even where the earlier ones are gone.

    Raises StudyError where a study that has begun is given others.
    """
    noted = record.read_json(FILE)
    if noted is None and not directories:
        return []
    if noted is None and record.read("journal.log"):
        raise StudyError(f"{record.directory}: was begun without --warm-start; choose another --out, or leave --warm-start out")
    if noted is None:
        fresh = carried(directories, space)
        record.write_json(FILE, {"from": [str(d) for d in directories], "starts": [vars(each) for each in fresh]})
        return fresh
    if directories and [str(d) for d in directories] != noted["from"]:
        raise StudyError(
            f"{record.directory}: was begun with --warm-start {' '.join(noted['from'])} and goes on from that; leave it out now"
        )
    return [Carried(**each) for each in noted["starts"]]


def _of(directory: Path, space: Space) -> Carried:
    trials = [t for t in read_trials(directory) if t.user_attrs.get("state") == "survived" and t.params and t.values]
    kept_guards = [t for t in trials if all(value <= 0 for value in t.constraints.values())]
    if not kept_guards:
        raise StudyError(f"{directory}: no trial of this study ended its climb within its guards; it gives no start")
    best = max(kept_guards, key=lambda t: (t.user_attrs.get("rung", 0), t.values[0], -t.number))
    start = translate(best.params, space)
    if not start:
        names = ", ".join(p.name for p in space.parameters[:3])
        raise StudyError(f"{directory}: shares no parameter with this space, which has {names} …; leave it out of --warm-start")
    return Carried(str(directory), str(best.user_attrs.get("folder", best.number)), start)


def translate(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Parameters of another space in this one: by name, curves of another number of points read off, all drawn into the ranges.

    Parameters of a refined study count as the curve of its layers.
    """
    curves: dict[str, dict[int, float]] = {}
    for name, value in params.items():
        path, point = _split(name.removeprefix("layers "))
        curves.setdefault(path, {})[point] = value
    widths: dict[str, int] = {}
    for parameter in space.parameters:
        path, point = _split(parameter.name)
        widths[path] = max(point + 1, widths.get(path, 1))
    known = [(p, *_split(p.name)) for p in space.parameters]
    return {p.name: _within(p, _at(curves[path], point, widths[path], p)) for p, path, point in known if path in curves}


def _split(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.*)@(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 0)


def _at(points: Mapping[int, Any], point: int, width: int, parameter: Parameter) -> Any:
    if parameter.options or (len(points) == 1 and width == 1):
        return points[min(points)]
    curve = Curve((tuple(float(points[i]) for i in sorted(points)),))
    return curve.at(point / (width - 1) if width > 1 else 0.5)[0]


def _within(parameter: Parameter, value: Any) -> Any:
    if parameter.options:
        return min(max(int(value), 0), parameter.options - 1)
    return min(max(float(value), parameter.low), parameter.high)
