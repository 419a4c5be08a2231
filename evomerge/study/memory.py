"""A study in memory, asked and told in one step each, whatever its number of dimensions.

`Study.ask` sets one parameter after the other and copies all that were set before, `Study.tell` hands out a deep copy: at 300
dimensions that is half of what a controller does. What samplers see, and in which order they are called, is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState


class Memory(InMemoryStorage):
    """Optuna's storage in memory, which sets many parameters at once as well."""

    def set_trial_params(self, trial_id: int, values: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> None:
        """Parameters of a running trial; raises ValueError where a value is outside its distribution."""
        inside = {name: space[name].to_external_repr(space[name].to_internal_repr(value)) for name, value in values.items()}
        with self._lock:
            trial = copy.copy(self._get_trial(trial_id))
            self.check_trial_is_updatable(trial_id, trial.state)
            trial.params = {**trial.params, **inside}
            trial.distributions = {**trial.distributions, **{name: space[name] for name in values}}
            self._set_trial(trial_id, trial)


def create_study(directions: Sequence[StudyDirection], sampler: BaseSampler) -> Study:
    """An empty study in memory."""
    return optuna.create_study(storage=Memory(), directions=list(directions), sampler=sampler)


def ask(study: Study, space: Mapping[str, BaseDistribution]) -> Trial:
    """The next trial, with a value for every parameter of the space: `study.ask(space)`."""
    trial, storage = study.ask(), study._storage
    if isinstance(storage, Memory) and "fixed_params" not in storage.get_trial(trial._trial_id).system_attrs:
        proposed = trial.relative_params
        storage.set_trial_params(trial._trial_id, {name: proposed[name] for name in space if name in proposed}, space)
        trial._cached_frozen_trial = storage.get_trial(trial._trial_id)
    for name, distribution in space.items():
        if name not in trial._cached_frozen_trial.params:  # enqueued, drawn by itself, or with a single value
            trial._suggest(name, distribution)
    return trial


def params_of(trial: Trial) -> Mapping[str, Any]:
    """What a trial proposes: `trial.params`, not a copy of it."""
    return trial._cached_frozen_trial.params


def tell(study: Study, trial: Trial, values: float | Sequence[float] | None) -> FrozenTrial:
    """How a trial ended, None where it failed: `study.tell`; returns the trial as the study has it, not a copy."""
    state = TrialState.FAIL if values is None else TrialState.COMPLETE
    told = None if values is None else [float(value) for value in (values if isinstance(values, Sequence) else [values])]
    study._thread_local.cached_all_trials = None  # valid within a trial only
    try:
        study.sampler.after_trial(study, study._storage.get_trial(trial._trial_id), state, told)
    finally:
        study._storage.set_trial_state_values(trial._trial_id, state, told)
    return study._storage.get_trial(trial._trial_id)
