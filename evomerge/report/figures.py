"""The pictures of a report, as SVG: the search, the winner's curves over depth, what was traded for what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evomerge.recipe import Cases, Curve, Recipe
from evomerge.report.frontier import frontiers
from evomerge.report.style import COLOURS, FAINT, INK, figure_of, grid, svg
from evomerge.report.view import Ended, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def search_picture(view: View) -> str:
    """Every trial's estimate in the order of the search, how far each got, the best so far and what was to be beaten."""
    figure, axes = figure_of(8.4, 3.8)
    for label, colour, marker, trials in _kinds(view.trials):
        axes.scatter(
            [_number(t) for t in trials],
            [t.value or 0.0 for t in trials],
            s=16,
            c=colour,
            marker=marker,
            label=label,
            linewidths=0.8,
        )
    best = _best_so_far(view.trials)
    if best:
        axes.step(
            [n for n, _ in best], [v for _, v in best], where="post", color=INK, linewidth=1.4, label="best so far, guards kept"
        )
    reached = [b for b in view.baselines if b.value is not None and b.notes["state"] == "survived"]
    if reached:
        top = max(reached, key=lambda b: b.value or 0.0)
        axes.axhline(top.value or 0.0, color=COLOURS[1], linestyle="--", linewidth=1.2, label=f"best baseline: {top.name}")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{view.experiment.suite.aggregate} of the target tasks\n(estimate, search documents)")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return svg(figure)


def depth_picture(recipe: Recipe) -> str:
    """Each per-source number of the recipe over the depth of the model, a panel a rule."""
    panels = [
        (rule, name, curves)
        for rule in recipe.all_rules.values()
        for name, knob in rule.knobs.items()
        if isinstance(knob, Mapping) and (curves := _curves(knob)) and _open(name, curves)
    ]
    if not panels:
        return ""
    figure, drawn = grid(len(panels))
    for axes, (rule, name, curves) in zip(drawn, panels, strict=False):
        _draw_curves(axes, recipe, f"{rule.match}: {rule.method}, {name}", curves)
    return svg(figure)


def traded_picture(view: View) -> str:
    """Each task of the winner beside the base and the best parent, on sealed documents."""
    sealed: Mapping[str, Any] = (view.certificate or {}).get("sealed", {})
    if "winner" not in sealed:
        return ""
    tasks = list(view.experiment.suite.tasks) + list(view.experiment.guard.tasks)
    figure, axes = figure_of(8.4, 0.5 + 0.42 * len(tasks))
    for row, task in enumerate(reversed(tasks)):
        known = {name: entry["tasks"][task] for name, entry in sealed.items() if task in entry["tasks"]}
        others = [value for name, value in known.items() if name != "winner"]
        axes.plot([min(others), max(others)], [row, row], color=FAINT, linewidth=1, zorder=1)
        axes.scatter(others, [row] * len(others), c=FAINT, s=22, zorder=2, label="parents and rivals" if row == 0 else None)
        axes.scatter(
            [known["base"]], [row], facecolors="none", edgecolors=INK, s=46, zorder=3, label="base" if row == 0 else None
        )
        axes.scatter([known["winner"]], [row], c=COLOURS[0], s=46, marker="D", zorder=4, label="winner" if row == 0 else None)
    axes.set_yticks(range(len(tasks)), [f"guard {t}" if t in view.experiment.guard.tasks else t for t in reversed(tasks)])
    axes.set_xlabel("score on sealed documents")
    axes.set_xlim(-0.02, 1.02)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return svg(figure)


def frontier_picture(view: View) -> str:
    """Each guard's loss against the target score, a point a trial; the line is the best at each loss."""
    found = frontiers(view)
    if not found:
        return ""
    figure, panels = grid(len(found))
    for axes, frontier in zip(panels, found, strict=True):
        for kept, colour in ((True, COLOURS[0]), (False, COLOURS[7])):
            shown = [point for point in frontier.trials if point.kept is kept]
            axes.scatter([p.loss for p in shown], [p.value for p in shown], s=12, c=colour, label="kept" if kept else "broken")
        best = frontier.points
        axes.step([p.loss for p in best], [p.value for p in best], where="post", color=INK, linewidth=1.2)
        axes.axvline(frontier.aim, color=COLOURS[1], linestyle="--", linewidth=1.0, label="aimed at")
        axes.set_title(f"guard {frontier.guard}", fontsize=9, loc="left", color=INK)
        axes.set_xlabel("loss", fontsize=8)
        axes.set_ylabel("target", fontsize=8)
        axes.legend(fontsize=7, frameon=False)
    return svg(figure)


def _kinds(trials: list[Ended]) -> list[tuple[str, str, str, list[Ended]]]:
    known = [t for t in trials if t.value is not None]
    stopped = [t for t in known if t.notes["state"] == "stopped"]
    survived = [t for t in known if t.notes["state"] == "survived"]
    top = max((t.notes["rung"] for t in survived), default=0)
    reached, below = ([t for t in survived if (t.notes["rung"] == top) is there] for there in (True, False))
    return [
        ("stopped on a rung", "#cbd5e1", "o", [t for t in stopped if t.feasible]),
        ("stopped, a guard broken", "#fca5a5", "x", [t for t in stopped if not t.feasible]),
        *([("ended on a lower rung", "#93c5fd", "o", [t for t in below if t.feasible])] if below else []),
        *([("ended on a lower rung, a guard broken", "#fda4af", "x", [t for t in below if not t.feasible])] if below else []),
        ("reached the top", COLOURS[0], "o", [t for t in reached if t.feasible]),
        ("reached the top, a guard broken", COLOURS[7], "x", [t for t in reached if not t.feasible]),
    ]


def _best_so_far(trials: list[Ended]) -> list[tuple[int, float]]:
    """The estimate of the best yet; one on a higher rung, which is of more documents, comes before all below it."""
    found: list[tuple[int, float]] = []
    best = (-1, float("-inf"))
    for trial in sorted(trials, key=_number):
        if trial.standing:
            best = max(best, trial.standing)
            found.append((_number(trial), best[1]))
    return found


def _number(trial: Ended) -> int:
    return int(trial.name.split("-")[0])


def _curves(knob: Mapping[str, Curve | Cases]) -> dict[str, Curve]:
    """Of each source; one that goes by names of tensors has no single curve."""
    return {source: curve for source, curve in knob.items() if isinstance(curve, Curve)}


def _open(name: str, knob: Mapping[str, Curve]) -> bool:
    return (
        name == "weight" or len({curve.points for curve in knob.values()}) > 1 or any(len(c.points[0]) > 1 for c in knob.values())
    )


def _draw_curves(axes: Axes, recipe: Recipe, title: str, curves: Mapping[str, Curve]) -> None:
    depths = [i / 40 for i in range(41)]
    order = ("base", *recipe.sources)
    for source, curve in curves.items():
        colour = COLOURS[order.index(source) % len(COLOURS)]
        for row in range(len(curve.points)):
            axes.plot(depths, [curve.at(d)[row] for d in depths], color=colour, linewidth=1.6, label=source if row == 0 else None)
    axes.set_title(title, fontsize=9, loc="left", color=INK)
    axes.set_xlabel("depth", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
