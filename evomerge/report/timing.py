"""Where a study's time went: in the engine, in swaps, in healing, and in waiting for the next candidate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from evomerge.report.standing import Rows
from evomerge.report.view import Ended, View

PARTS = {"swap": "swap", "heal": "healing", "engine": "engine", "score": "tasks", "kl": "KL", "wait": "waiting"}


def timing(view: View) -> Rows:
    """Seconds of all trials and baselines, of the median trial and of the slowest one; `tasks` is prompts made, answers read."""
    trials = [trial for trial in view.trials if trial.notes.get("seconds")]
    if not trials:
        return []
    slowest = max(trials, key=_whole)
    lines = {"all trials": _sums(trials), "all baselines": _sums(view.baselines)}
    lines["a trial, median"] = {part: statistics.median(_part(trial, part) for trial in trials) for part in PARTS}
    lines[f"the slowest, {slowest.name}"] = {part: _part(slowest, part) for part in PARTS}
    shown = [part for part in PARTS if any(seconds[part] for seconds in lines.values())]
    rows = [["seconds", *(PARTS[part] for part in shown), "in all"]]
    return rows + [
        [name, *(f"{seconds[part]:.2f}" for part in shown), f"{sum(seconds.values()):.2f}"] for name, seconds in lines.items()
    ]


def _sums(ended: Sequence[Ended]) -> dict[str, float]:
    return {part: sum(_part(each, part) for each in ended) for part in PARTS}


def _part(ended: Ended, part: str) -> float:
    return float(ended.notes.get("seconds", {}).get(part, 0.0))


def _whole(ended: Ended) -> float:
    return sum(_part(ended, part) for part in PARTS)
