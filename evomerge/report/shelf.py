"""The shelf: of several objectives every trial that no other beats in all, and how much room the search won over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from evomerge.report.standing import Rows
from evomerge.report.style import COLOURS, FAINT, INK, grid, svg
from evomerge.report.view import Ended, View
from evomerge.study.objectives import LENGTH, PARAMETERS, TARGET, is_less_better
from evomerge.study.pareto import front, hypervolume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 20  # rows of a shelf
PANELS = 5  # pairs of objectives that are drawn


def shelf(view: View) -> list[Ended]:
    """The trials that reached the top rung within their guards and that none of the others dominates, best target first."""
    reached = _reached(view)
    kept = [reached[i] for i in front([_signed(view, trial) for trial in reached])]
    return sorted(kept, key=lambda trial: -(trial.value or 0.0))


def shelf_table(view: View) -> Rows:
    """A row a trial of the shelf, and what it covers; nothing where there is one objective."""
    names = view.experiment.search.objectives
    if len(names) < 2 or not (found := shelf(view)):
        return []
    chosen = ((view.certificate or {}).get("winner") or {}).get("name")
    rows = [["on the shelf", *(f"{name} {'↓' if _less(view, name) else '↑'}" for name in names), "certified"]]
    for trial in found[:SHOWN]:
        cells = [_figure(name, trial.notes["objectives"][name]) for name in names]
        rows.append([trial.name, *cells, "yes" if trial.name == chosen else ""])
    if len(found) > SHOWN:
        rows.append([f"and {len(found) - SHOWN} more, in report.json", *[""] * (len(names) + 1)])
    if history := volumes(view):
        rows.append([f"hypervolume {history[-1][1]:.4f}", *[""] * (len(names) + 1)])
    return rows


def volumes(view: View) -> list[tuple[int, float]]:
    """After which trial which share of the box between the worst and the best of each objective was covered."""
    reached = sorted(_reached(view), key=lambda trial: trial.name)
    points = [_signed(view, trial) for trial in reached]
    if not points:
        return []
    low = [min(column) for column in zip(*points, strict=True)]
    span = [max(column) - worst or 1.0 for column, worst in zip(zip(*points, strict=True), low, strict=True)]
    unit = [[(x - worst) / width for x, worst, width in zip(point, low, span, strict=True)] for point in points]
    found, on_front = list[tuple[int, float]](), list[Sequence[float]]()
    for trial, point in zip(reached, unit, strict=True):
        on_front = [[*on_front, point][i] for i in front([*on_front, point])]
        found.append((int(trial.name.split("-")[0]), hypervolume(on_front, [0.0] * len(point))))
    return found


def shelf_picture(view: View) -> str:
    """Every pair of objectives, the shelf standing out, and the hypervolume after each trial; nothing for one objective."""
    names = view.experiment.search.objectives
    history = volumes(view) if len(names) > 1 else []
    if not history:
        return ""
    pairs = list(combinations(names, 2))[:PANELS]
    figure, panels = grid(len(pairs) + 1)
    for axes, (x, y) in zip(panels, pairs, strict=False):
        _draw_pair(axes, view, x, y)
    axes = panels[len(pairs)]
    axes.step([n for n, _ in history], [v for _, v in history], where="post", color=COLOURS[0], linewidth=1.6)
    axes.set_title("hypervolume, share of the box", fontsize=9, loc="left", color=INK)
    axes.set_xlabel("trial", fontsize=8)
    axes.set_ylim(bottom=0)
    return svg(figure)


def _draw_pair(axes: Axes, view: View, x: str, y: str) -> None:
    reached, best = _reached(view), shelf(view)
    for trials, colour, size, label in ((reached, FAINT, 10, "reached the top"), (best, COLOURS[0], 26, "on the shelf")):
        points = [(trial.notes["objectives"][x], trial.notes["objectives"][y]) for trial in trials]
        axes.scatter([a for a, _ in points], [b for _, b in points], s=size, c=colour, label=label)
    chosen = ((view.certificate or {}).get("winner") or {}).get("name")
    for trial in (t for t in reached if t.name == chosen):
        axes.scatter(
            [trial.notes["objectives"][x]], [trial.notes["objectives"][y]],
            s=90, facecolors="none", edgecolors=COLOURS[1], linewidths=1.6, label="certified",
        )  # fmt: skip
    axes.set_xlabel(f"{x}{' (less is better)' if _less(view, x) else ''}", fontsize=8)
    axes.set_ylabel(f"{y}{' (less is better)' if _less(view, y) else ''}", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def _reached(view: View) -> list[Ended]:
    return [t for t in view.trials if t.notes["state"] == "survived" and t.feasible and t.notes.get("objectives")]


def _signed(view: View, trial: Ended) -> list[float]:
    return [-v if _less(view, name) else v for name, v in trial.notes["objectives"].items()]


def _less(view: View, name: str) -> bool:
    return is_less_better(name, view.experiment.suite, view.experiment.guard)


def _figure(name: str, value: float) -> str:
    if name in (LENGTH, PARAMETERS):
        return f"{value:,.0f}" if name == PARAMETERS else f"{value:.1f}"
    tasks_like = name == TARGET or abs(value) <= 1
    return f"{100 * value:.1f}" if tasks_like else f"{value:.4f}"
