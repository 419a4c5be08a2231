"""A refused model mended: the nearest point to it, on the segment to its parent, that keeps the guards.

As in backward-compatible weight interpolation: the parent's end keeps what the parent knew, the candidate's end has what is new,
and a few evaluations on documents that steered or chose find where between them the guards begin to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.document import Place
from evomerge.errors import StudyError
from evomerge.recipe import Recipe
from evomerge.scoring.scores import Scores
from evomerge.study.executor import Job, Life

Documents = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Tried:
    """A point of the segment: the parent's share in it, and whether the guards held there."""

    share: float
    kept: bool


def between(model: str | Path, parent: str | Path, share: float) -> Recipe:
    """The point of the segment at which the parent has this share; config and context are the model's."""
    weight = {"base": 1 - share, "parent": share}
    data = {
        "base": str(model),
        "sources": {"parent": str(parent)},
        "rules": [{"match": "*", "method": "linear", "weight": weight}],
    }
    return Recipe.from_data(data, Place("repair"))


def nearest(
    model: str | Path, parent: str | Path, documents: Documents, keeps: Callable[[Scores], bool], tries: int
) -> Life[list[Tried]]:
    """Bisect the segment, a scored point a try; the model's own end is known to break a guard, the parent's to keep them."""
    found: list[Tried] = []
    low, high = 0.0, 1.0
    for _ in range(tries):
        share = (low + high) / 2
        result = yield Job(between(model, parent, share), documents)
        if result.error:
            raise StudyError(f"repair: the point {share:g} of the way to {parent} cannot be scored: {result.error}")
        found.append(Tried(share, keeps(result.scores)))
        low, high = (low, share) if found[-1].kept else (share, high)
    return found


def best_of(tried: Sequence[Tried]) -> float | None:
    """The least share of the parent at which the guards held; None where they held nowhere but at the parent."""
    return min((point.share for point in tried if point.kept), default=None)


def told(tried: Sequence[Tried], parent: str, *, second_look: bool) -> dict[str, Any]:
    """What the certificate says of the repair, whatever came of it."""
    return {
        "towards": parent,
        "share": best_of(tried),
        "tried": [vars(point) for point in tried],
        "second_look": second_look,
    }
