"""In which order trials finished: with several workers it is not that of their numbers, and what is learned depends on it."""

from __future__ import annotations

from collections.abc import Collection

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

ARRIVAL = "cmaes:arrival"  # on a trial: how many had finished before it; studies of old have it under this name
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def note_arrival(study: Study, trial: FrozenTrial) -> None:
    """Call it in `after_trial`."""
    arrival = len(study.get_trials(deepcopy=False, states=FINISHED))
    study._storage.set_trial_system_attr(trial._trial_id, ARRIVAL, arrival)


def arrived(
    study: Study, names: Collection[str] = (), states: Collection[TrialState] = (TrialState.COMPLETE,)
) -> list[FrozenTrial]:
    """The trials that have ended so and have all these parameters, in the order of their arrival."""
    ended = study.get_trials(deepcopy=False, states=tuple(states))
    inside = [trial for trial in ended if all(name in trial.params for name in names)]
    return sorted(inside, key=lambda trial: (trial.system_attrs.get(ARRIVAL, trial.number), trial.number))
