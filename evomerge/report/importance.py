"""What mattered: each delta's worth to the finalists, and how much of the good trials' luck each parameter explains."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from evomerge.report.standing import Rows
from evomerge.report.view import View
from evomerge.study.journal import read_trials
from evomerge.study.objectives import is_less_better
from evomerge.study.stages import is_fine

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SHOWN = 12
FEWEST = 20  # trials below which importances are noise


def attribution_table(view: View) -> Rows:
    """A row a block and source: what the finalist loses without that delta, in points; nothing where it was not asked for."""
    path = view.directory / "attribution.json"
    noted: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    winner = ((view.certificate or {}).get("winner") or {}).get("name")
    name = winner if winner in noted else next(iter(noted), None)
    if name is None:
        return []
    rows = [[f"{name} loses without", "the delta of", "points", "95 % interval", "which"]]
    for row in sorted(noted[name], key=lambda row: -row.get("worth", float("-inf"))):
        if row["error"] is not None:
            rows.append([row["block"], row["source"], "", "", f"not scored: {row['error']}"])
            continue
        said = "helps" if row["low"] > 0 else "harms" if row["high"] < 0 else "cannot be told"
        interval = f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        rows.append([row["block"], row["source"], f"{100 * row['worth']:+.1f}", interval, said])
    return rows


def importance_table(view: View) -> Rows:
    """The parameters that tell good trials from the others (PED-ANOVA; Watanabe et al., 2023), for each objective."""
    names = view.experiment.search.objectives
    columns = [importances(view, place) for place in range(len(names))]
    if not all(columns):
        return []
    order = sorted(columns[0], key=lambda parameter: -max(column[parameter] for column in columns))
    rows = [["parameter", *([f"share, {name}" for name in names] if len(names) > 1 else ["share"])]]
    return rows + [[parameter, *(f"{100 * column[parameter]:.1f} %" for column in columns)] for parameter in order[:SHOWN]]


def importances(view: View, objective: int = 0) -> dict[str, float]:
    """Share of each parameter of the first stage; empty where there are too few trials, or nothing to tell apart."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    trials = _coarse(view)
    values = {trial.values[objective] for trial in trials}
    if len(trials) < FEWEST or len(values) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of the study below
    study = optuna.create_study(directions=["maximize"])
    for trial in trials:
        study.add_trial(
            optuna.create_trial(params=trial.params, distributions=trial.distributions, value=_signed(view, trial, objective))
        )
    evaluator = PedAnovaImportanceEvaluator()
    found = get_param_importances(study, evaluator=evaluator, params=sorted(trials[0].params))
    return {name: float(share) for name, share in found.items()}


def _coarse(view: View) -> list[FrozenTrial]:
    from optuna.trial import TrialState

    if not (view.directory / "journal.log").exists():
        return []
    complete = [trial for trial in read_trials(view.directory) if trial.state == TrialState.COMPLETE]
    return [trial for trial in complete if trial.params and not is_fine(trial.params)]


def _signed(view: View, trial: FrozenTrial, objective: int) -> float:
    name = view.experiment.search.objectives[objective]
    cost = is_less_better(name, view.experiment.suite, view.experiment.guard)
    value = float(trial.values[objective])
    return -value if cost else value
