"""In which order trials finished: with several workers it is not that of their numbers, and what is learned depends on it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

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
    return sorted(inside, key=_place)


@dataclass
class Arrivals:
    """The completed trials of a study in the order of their arrival, of which every look only looks at those that are new."""

    study: str = ""
    trials: list[FrozenTrial] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of the trials
    looked: int = 0  # how many trials of the study were looked at
    running: list[int] = field(default_factory=list)  # those of them that had not ended

    def look(self, study: Study) -> None:
        every = study.get_trials(deepcopy=False)  # in the order of their numbers, which begin with 0
        if self.study != study.study_name or len(every) < self.looked:
            vars(self).update(vars(Arrivals(study.study_name)))
        new = [every[number] for number in (*self.running, *range(self.looked, len(every)))]
        self.looked, self.running = len(every), [trial.number for trial in new if not trial.state.is_finished()]
        ended = sorted((trial for trial in new if trial.state == TrialState.COMPLETE), key=_place)
        in_order = not ended or not self.trials or _place(self.trials[-1]) < _place(ended[0])
        self.trials += ended
        self.numbers += [trial.number for trial in ended]
        if not in_order:
            self.trials.sort(key=_place)
            self.numbers = [trial.number for trial in self.trials]


def _place(trial: FrozenTrial) -> tuple[int, int]:
    return trial.system_attrs.get(ARRIVAL, trial.number), trial.number
