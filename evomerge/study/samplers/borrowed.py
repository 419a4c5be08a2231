"""Optuna's own samplers, made anew for every trial: a seeded one that lives on repeats itself after a resume."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from .cube import Cube
from .seeded import DRAW, Active, Seeded, Space, Start, seed_for
from .uniform import Qmc

Seen = dict[int, FrozenTrial | None]  # by number; None is not shown


class Borrowed(Seeded):
    """Any sampler of Optuna's kind that takes a `seed`; further options go to its constructor."""

    make: Callable[..., BaseSampler]
    quasi_random = False  # whether a Sobol sequence takes the place of the random points that it would begin with

    def __init__(
        self,
        *,
        seed: int = 0,
        space: Mapping[str, BaseDistribution] | None = None,
        start: Start = None,
        active: Active | None = None,
        make: Callable[..., BaseSampler] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(seed=seed, space=space, start=start, active=active)
        self._make = make or type(self).make
        self._takes_seed = "seed" in inspect.signature(self._make).parameters
        self._options = options
        self._known: dict[tuple[str, frozenset[str]], Seen] = {}  # what is shown of finished trials, which do not change
        self._fresh(0)  # a wrong option is refused here and not in the first trial

    def _fresh(self, *place: int | str) -> BaseSampler:
        seeded = {"seed": seed_for(self.seed, *place)} if self._takes_seed else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # tests hold whatever of Optuna's is used here
            return self._make(**seeded, **self._options)

    def propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        proposal = self._fresh(self.draw(study, trial)).sample_relative(self._view(study, space), trial, space)
        return proposal or (Qmc(seed=self.seed).propose(study, trial, space) if self.quasi_random else {})

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        start = self.beginning(study, trial, [param_name])
        if start is not None and param_name in start:
            return start[param_name]
        sampler = self._fresh(self.draw(study, trial), param_name)
        return sampler.sample_independent(self._view(study, [param_name]), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        super().before_trial(study, trial)
        self._fresh(trial.number).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._fresh(trial.number).after_trial(study, trial, state, values)

    def _view(self, study: Study, names: Collection[str]) -> Study:
        alone = len(names) == 1  # is asked of each parameter by itself: nothing is kept for that
        known = None if alone else self._known.setdefault((study.study_name, frozenset(names)), {})
        return cast(Study, View(study, names, self._shown, known))

    def _shown(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial with other values for what had no say in it: those that it had would be taken for a reason."""
        idle = self.idle(trial.params, trial.params)
        if not idle:
            return trial
        shown = copy.copy(trial)
        shown.params = trial.params | self._instead({name: trial.distributions[name] for name in idle}, trial)
        return shown

    def _instead(self, space: Space, trial: FrozenTrial) -> dict[str, Any]:
        """Drawn anew, as if nothing were known: that moves no density, and gives no gene an advantage."""
        rng = np.random.default_rng(seed_for(self.seed, trial.system_attrs.get(DRAW, trial.number), "idle"))
        return Cube(space).params(rng.random(len(space)))


class Filled(Borrowed):
    """A sampler that proposes nothing at first, and then leaves out some: those are uniform, and drawn without a sampler each."""

    quasi_random = True

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return Seeded.sample_independent(self, study, trial, param_name, param_distribution)


class View:
    """A study seen without the finished trials that lack some of the parameters, such as baselines outside the space."""

    def __init__(
        self,
        study: Study,
        names: Collection[str],
        shown: Callable[[FrozenTrial], FrozenTrial],
        known: Seen | None = None,
    ) -> None:
        self._study, self._names, self._shown = study, set(names), shown
        self._known: Seen = {} if known is None else known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        trials = self._study._get_trials(*args, **kwargs)
        seen = (self._seen(trial) if trial.state.is_finished() else trial for trial in trials)
        return [trial for trial in seen if trial is not None]

    def _seen(self, trial: FrozenTrial) -> FrozenTrial | None:
        if trial.number not in self._known:
            self._known[trial.number] = self._shown(trial) if self._names <= trial.params.keys() else None
        return self._known[trial.number]


class AlignedView(View):
    """As above, and every trial with the same constraints in the same order: without that Optuna's GP raises ValueError."""

    def _get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        trials = super()._get_trials(*args, **kwargs)
        names = {name for trial in trials if trial.state.is_finished() for name in trial.constraints}
        complete = [trial for trial in trials if not trial.state.is_finished() or trial.constraints.keys() == names]
        return [_ordered(trial) for trial in complete] if len(names) > 1 else complete


def _ordered(trial: FrozenTrial) -> FrozenTrial:
    trial = copy.copy(trial)
    trial.system_attrs = dict(sorted(trial.system_attrs.items()))
    return trial


class Tpe(Borrowed):
    """Tree-structured Parzen estimators (Bergstra et al., 2011), multivariate; takes constraints and several objectives."""

    make, quasi_random = TPESampler, True


class Gp(Borrowed):
    """A Gaussian process with expected improvement; a second or two a trial, and often worth it below 150 trials."""

    make, quasi_random = GPSampler, True

    def _view(self, study: Study, names: Collection[str]) -> Study:
        return cast(Study, AlignedView(study, names, self._shown))

    def _instead(self, space: Space, trial: FrozenTrial) -> dict[str, Any]:
        """All alike: trials that differ in nothing that had a say are one point."""
        cube = Cube(space)
        return cube.params(cube.point({}))
