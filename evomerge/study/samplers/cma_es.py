"""CMA-ES on the `cmaes` package: constraints, steps, choices, results in the order of their arrival, exact resumption.

Optuna's own CmaEsSampler ignores constraints and starts again from nothing when trials are copied without their attributes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .arrival import Arrivals, note_arrival
from .cube import Cube, Vector
from .evolution import Asked, Evolution, Settings, Told
from .seeded import Active, Seeded, Space, Start, seed_for

ASKED = "cmaes:asked"  # on a trial: the run that asked for it, and its steps before rounding


@dataclass
class Replay:
    """An evolution, and whom it has been told about: the numbers of the study's trials in the order of their arrival."""

    study: str
    cube: Cube
    settings: Settings
    evolution: Evolution
    arrivals: Arrivals
    seen: list[int] = field(default_factory=list)

    def is_behind(self, study: str, cube: Cube, settings: Settings, arrived: list[int]) -> bool:
        same = self.study == study and self.cube.space == cube.space and self.settings == settings
        return same and self.seen == arrived[: len(self.seen)]


class CmaEs(Seeded):
    """Covariance matrix adaptation in the unit cube (Hansen, 2016).

        study = optuna.create_study(sampler=CmaEs(seed=1))

    Infeasible trials rank behind all feasible ones, by the sum of their violations. Failed trials are skipped. Options of a
    choice have no order: each has a probability of its own, beside the normal distribution of the numbers.
    A distribution that has collapsed begins again somewhere else. Of several beginnings each is proposed first, and what was
    told of them so far says where the distribution is begun.

    Args:
        seed, space, start, active: as for every sampler. Without a start it is the middle; options begin equally likely.
        sigma: the first standard deviation, in widths of the ranges.
        population: how many results move the distribution; 4 + 3 ln n by default.
        lr_adapt: smaller steps where the noise is large; for budgets of thousands of trials.
        collapsed: a largest standard deviation below this ends a run.
        scales: factors of the first standard deviation, by name; 1 where there is none.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        space: Mapping[str, BaseDistribution] | None = None,
        start: Start = None,
        sigma: float = 1 / 6,
        population: int | None = None,
        lr_adapt: bool = False,
        collapsed: float = 1e-4,
        scales: Mapping[str, float] | None = None,
        active: Active | None = None,
    ) -> None:
        super().__init__(seed=seed, space=space, start=start, active=active)
        self.scales = dict(scales or {})
        self.sigma, self.population, self.lr_adapt, self.collapsed = sigma, population, lr_adapt, collapsed
        self._replays: list[Replay] = []  # a stack: pop and append are atomic, so threads take different ones

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        if len(study.directions) > 1:
            raise ValueError("CMA-ES takes one objective; for several use NSGA-II (`nsga2`) or TPE (`tpe`)")
        return super().infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        if not search_space:
            return {}
        start = self.beginning(study, trial, search_space) if len(self.starts) > 1 else None
        if start is None:
            return self.propose(study, trial, search_space)
        cube = self.cube(search_space)
        return cube.params(cube.point(start))

    def propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        replay = self._caught_up(study, self.cube(space))
        asked = replay.evolution.ask(seed_for(self.seed, self.draw(study, trial)))
        stamp: dict[str, Any] = {"run": replay.evolution.restarts, "raw": _unrounded(replay.cube, asked)}
        study._storage.set_trial_system_attr(trial._trial_id, ASKED, stamp)
        self._replays.append(replay)
        return replay.cube.params(asked.point)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        note_arrival(study, trial)

    def _caught_up(self, study: Study, cube: Cube) -> Replay:
        """The distribution after all results so far: the kept one if it only lacks the latest, else one told from the first."""
        replay = self._replays.pop() if self._replays else None
        arrivals = replay.arrivals if replay else Arrivals()
        arrivals.look(study)
        trials = arrivals.trials
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        settings = self._settings(cube, self._best_start(trials, cube, sign))
        if replay is None or not replay.is_behind(study.study_name, cube, settings, arrivals.numbers):
            replay = Replay(study.study_name, cube, settings, Evolution(settings), arrivals)
        for trial in trials[len(replay.seen) :]:
            replay.seen.append(trial.number)
            if cube.space.keys() <= trial.params.keys():
                replay.evolution.tell(self._without_idle(trial, cube, _told(trial, cube, sign)))
        return replay

    def _without_idle(self, trial: FrozenTrial, cube: Cube, told: Told) -> Told:
        """What the trial's choices left unused says nothing: it is told as NaN."""
        unused = set(self.idle(trial.params, cube.space))
        return told._replace(point=np.where([name in unused for name in cube.space], np.nan, told.point)) if unused else told

    def _best_start(self, trials: Sequence[FrozenTrial], cube: Cube, sign: float) -> Mapping[str, Any]:
        """The beginning that turned out best so far; the first before any did."""
        if len(self.starts) < 2:
            return next(iter(self.starts), {})
        own = [trial for trial in trials if ASKED not in trial.system_attrs and cube.space.keys() <= trial.params.keys()]
        told = [(trial.params, _told(trial, cube, sign)) for trial in own]
        points = [cube.params(cube.point(start)) for start in self.starts]
        tried = [(each.violation, each.loss, points.index(params)) for params, each in told if params in points]
        return self.starts[min(tried)[2]] if tried else self.starts[0]

    def _settings(self, cube: Cube, start: Mapping[str, Any]) -> Settings:
        population = self.population or 4 + math.floor(3 * math.log(len(cube)))
        mean, cells = tuple(cube.point(start).tolist()), tuple(cube.steps.tolist())
        options = tuple(cube.options.tolist()) if cube.options.any() else ()
        scales = tuple(self.scales.get(name, 1.0) for name in cube.space) if self.scales else ()
        return Settings(mean, cells, self.seed, self.sigma, population, self.lr_adapt, self.collapsed, options, scales)


def _unrounded(cube: Cube, asked: Asked) -> dict[str, float]:
    return {name: float(x) for name, x, cells in zip(cube.space, asked.raw, cube.steps, strict=True) if cells}


def _told(trial: FrozenTrial, cube: Cube, sign: float) -> Told:
    assert trial.value is not None
    stamp = trial.system_attrs.get(ASKED, {})
    violation = sum(max(value, 0.0) for value in trial.constraints.values())
    run = None if "fixed_params" in trial.system_attrs else stamp.get("run")  # enqueued: others chose the point
    raw = {} if run is None else stamp["raw"]
    return Told(_point(trial, cube, raw), sign * trial.value, violation, run)


def _point(trial: FrozenTrial, cube: Cube, raw: Mapping[str, float]) -> Vector:
    rounded = cube.point(trial.params)
    return np.array([raw.get(name, x) for name, x in zip(cube.space, rounded, strict=True)])
