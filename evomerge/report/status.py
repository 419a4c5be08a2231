"""Where a study stands, read from its files while it runs or after: `evomerge status DIR`."""

from __future__ import annotations

import fcntl
from collections import Counter
from pathlib import Path

from evomerge.report.view import Ended, View


def status(directory: str | Path) -> str:
    """State, phase, trials, best estimate and time of a study, a line each. Raises StudyError where there is none."""
    view = View.of(Path(directory))
    rows = {
        "study": f"{view.directory} ({view.experiment.search.sampler}, seed {view.experiment.search.seed})",
        "state": _state(view),
        "scored": _scored(view),
        "trials": _trials(view),
        "best": _best(view),
        "time": _time(view),
    }
    return "\n".join(f"{name:<8}{text}" for name, text in rows.items())


def holder(directory: Path) -> str | None:
    """The process that works on a study now; None where nobody does."""
    path = directory / "lock"
    if not path.exists():
        return None
    with open(path, encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return lock.read().strip() or "unknown"
    return None


def _state(view: View) -> str:
    if process := holder(view.directory):
        return f"running, process {process}: {_phase(view)}"
    if view.certificate is not None:
        return f"{view.verdict} (exit {view.certificate['ending']})"
    return f"stopped during {_phase(view)}; the same `evomerge search` with --resume goes on"


def _phase(view: View) -> str:
    """What is under way, by the folders that are there."""
    begun = [name for name in ("sealed", "select", "trials") if any((view.directory / name).glob("*"))]
    return begun[0] if begun else "baselines" if view.baselines else "parents"


def _scored(view: View) -> str:
    return f"{len(view.parents)} parents, {len(view.baselines)} baselines"


def _trials(view: View) -> str:
    states = Counter(str(trial.notes["state"]) for trial in view.trials)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{len(view.trials)} of {view.experiment.search.trials}" + (f": {counts}" if counts else "")


def _best(view: View) -> str:
    """The highest estimate on search documents among trials that no race stopped and that keep their guards, on the highest rung
    that any has reached."""
    best = max((trial for trial in view.trials if trial.standing), key=lambda trial: trial.standing or (), default=None)
    if best is None:
        return "none yet"
    return f"{_named(best)} on search documents; the best baseline {_named(max(view.baselines, key=_value, default=None))}"


def _value(ended: Ended) -> float:
    return ended.value if ended.value is not None and ended.feasible else float("-inf")


def _named(ended: Ended | None) -> str:
    return "none" if ended is None or ended.value is None else f"{ended.name} {ended.value:.4f}"


def _time(view: View) -> str:
    budget = view.experiment.search.budget
    return f"{view.seconds:.0f} s" + (f" of {budget:.0f} s" if budget else "")
