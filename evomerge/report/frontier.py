"""What the guards cost: the best target score among the trials that lose at most so much of a guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from evomerge.guards.criteria import criteria
from evomerge.report.view import Ended, View
from evomerge.study.trial import AIM

SHOWN = 6  # points of a frontier in a table


@dataclass(frozen=True)
class Point:
    """A trial that is better at the targets than every trial that loses less of the guard."""

    loss: float
    value: float
    name: str
    kept: bool  # within what the search aims at


@dataclass(frozen=True)
class Frontier:
    """The trials of one guard, and the best of them at each loss."""

    guard: str
    aim: float  # the loss that the search aims at: part of the tolerance
    trials: tuple[Point, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        best: list[Point] = []
        for point in sorted(self.trials, key=lambda p: (p.loss, -p.value)):
            if not best or point.value > best[-1].value:
                best.append(point)
        return tuple(best)

    @property
    def cost(self) -> float | None:
        """What the best trial has above the best that keeps this guard; None where none keeps it."""
        kept = [point.value for point in self.trials if point.kept]
        return max(point.value for point in self.trials) - max(kept) if kept else None


def frontiers(view: View) -> list[Frontier]:
    """One for each guard, over the trials that reached the top rung: all of those were scored on the same documents."""
    top = len(view.experiment.suite.rungs) - 1
    reached = [t for t in view.trials if t.value is not None and t.notes["rung"] == top]
    found = [Frontier(guard, aim, _trials(reached, guard, aim)) for guard, aim in _aims(view).items()]
    return [frontier for frontier in found if frontier.trials]


def frontier_table(view: View) -> list[list[str]]:
    """The frontier of every guard, a row a point, and what keeping the guard cost."""
    rows = [["guard", "loss", "best target at this loss or less", "trial", "kept"]]
    for frontier in frontiers(view):
        rows += [
            [frontier.guard, f"{p.loss:+.4f}", f"{100 * p.value:.1f}", p.name, "yes" if p.kept else "no"]
            for p in _thinned(frontier.points)
        ]
        cost = "none kept it" if frontier.cost is None else f"{100 * frontier.cost:.1f}"
        rows.append([f"{frontier.guard}: cost of keeping it", f"{frontier.aim:+.4f}", cost, "", ""])
    return rows if len(rows) > 1 else []


def _aims(view: View) -> dict[str, float]:
    guard = view.experiment.guard
    aims = {one.name: 0.0 if one.measure == "floor" else AIM * one.limit for one in criteria(guard)}
    return {**aims, **guard.distances}


def _trials(trials: Sequence[Ended], guard: str, aim: float) -> tuple[Point, ...]:
    """Constraints are told as what is above the aim."""
    known = [(t, t.notes["constraints"][guard]) for t in trials if guard in t.notes.get("constraints", {})]
    return tuple(Point(over + aim, t.value, t.name, over <= 0) for t, over in known if t.value is not None)


def _thinned(points: Sequence[Point]) -> list[Point]:
    """The ends, the best that is kept, and some between: where the frontier climbs most."""
    if len(points) <= SHOWN:
        return list(points)
    climbs = {after: after.value - before.value for before, after in pairwise(points)}
    kept = [point for point in points if point.kept][-1:]
    chosen = {points[0], points[-1], *kept, *sorted(climbs, key=lambda p: -climbs[p])[: SHOWN - 3]}
    return [point for point in points if point in chosen]
