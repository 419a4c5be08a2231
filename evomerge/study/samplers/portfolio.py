"""Several samplers in one search: each trial goes to an arm, and more go to the arm whose trials turn out well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .arrival import arrived, note_arrival
from .borrowed import Gp, Tpe
from .cma_es import CmaEs
from .seeded import Common, Seeded, Space, seed_for
from .uniform import Qmc, Random

ARM = "portfolio:arm"  # on a trial: who proposed it
ARMS: dict[str, type[Seeded]] = {"cmaes": CmaEs, "tpe": Tpe, "gp": Gp, "qmc": Qmc, "random": Random}
WINDOW = 40  # trials that a new one is compared with
QUARTER = 0.25  # of them that may be better than a success
FADING = 0.97  # what an earlier success still counts, from one trial to the next
REMEMBERED = 150  # trials after which one is forgotten


class Portfolio(Seeded):
    """Thompson sampling over arms, a success being a trial among the best quarter of its time (Agrawal & Goyal, 2012).

    All arms learn from all trials; those of others are drawn in by CMA-ES. Successes fade, so that the arm that earns the
    trials may change: one that explores first, one that refines later.
    """

    def __init__(
        self,
        *,
        arms: Sequence[str] = ("cmaes", "tpe", "qmc"),
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if unknown := [name for name in arms if name not in ARMS] or ([] if arms else ["none"]):
            raise TypeError(f"arms: no arm {unknown[0]!r}; known are {', '.join(ARMS)}")
        first = self.starts[:1]  # a start is proposed by the portfolio; CMA-ES begins around it as well
        own = {name: seed_for(self.seed, name) for name in arms}
        self.arms = {name: ARMS[name](seed=own[name], space=self.space, start=first, active=self.active) for name in arms}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        if len(study.directions) > 1:
            raise ValueError("a portfolio takes one objective; for several use NSGA-II (`nsga2`) or TPE (`tpe`)")
        return super().infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        start = self.beginning(study, trial, search_space) if search_space else None
        if start is None:
            return self.propose(study, trial, search_space) if search_space else {}
        cube = self.cube(search_space)
        return cube.params(cube.point(start))

    def propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        rng = np.random.default_rng(seed_for(self.seed, self.draw(study, trial), "arm"))
        credit = credits_of(study, list(self.arms))
        drawn = {name: rng.beta(1 + won, 1 + lost) for name, (won, lost) in credit.items()}
        chosen = max(drawn, key=lambda name: drawn[name])
        study._storage.set_trial_system_attr(trial._trial_id, ARM, chosen)
        return self.arms[chosen].propose(study, trial, space)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        for arm in self.arms.values():
            arm.after_trial(study, trial, state, values)
        note_arrival(study, trial)


def credits_of(study: Study, arms: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Faded successes and failures of every arm; a failed trial is a failure."""
    latest = arrived(study, states=(TrialState.COMPLETE, TrialState.FAIL))[-REMEMBERED:]
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    worth = [_worth(trial, sign) for trial in latest]
    credit = {name: [0.0, 0.0] for name in arms}
    for i, trial in enumerate(latest):
        for pair in credit.values():
            pair[0], pair[1] = FADING * pair[0], FADING * pair[1]
        earlier = worth[max(0, i - WINDOW) : i]
        won = worth[i][0] < float("inf") and sum(other < worth[i] for other in earlier) <= QUARTER * len(earlier)
        if (arm := trial.system_attrs.get(ARM)) in credit:
            credit[arm][0 if won else 1] += 1.0
    return {name: (pair[0], pair[1]) for name, pair in credit.items()}


def _worth(trial: FrozenTrial, sign: float) -> tuple[float, float]:
    """Less is better: violations first, then the loss."""
    if trial.value is None:
        return float("inf"), float("inf")
    return sum(max(value, 0.0) for value in trial.constraints.values()), sign * trial.value
