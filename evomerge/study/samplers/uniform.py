"""Samplers that look at no result: independent points, and points of a Sobol sequence."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from .seeded import Seeded, Space, seed_for


class Random(Seeded):
    """Uniform in the unit cube: what every other sampler has to beat."""

    def propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        rng = np.random.default_rng(seed_for(self.seed, self.draw(study, trial)))
        return self.cube(space).params(rng.random(len(space)))


class Qmc(Seeded):
    """Trial number n is point n of a scrambled Sobol sequence (Owen, 1998): uniform, without the clumps."""

    def propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        sequence = copy.copy(_scrambled(len(space), self.seed))
        sequence.reset()  # a state of its own: another thread may draw too
        if number := self.draw(study, trial):
            sequence.fast_forward(number)
        return self.cube(space).params(sequence.random(1)[0])


@lru_cache(maxsize=8)
def _scrambled(dims: int, seed: int) -> Any:
    """The sequence at its beginning; scrambling 300 dimensions takes 20 ms."""
    from scipy.stats.qmc import Sobol

    return Sobol(dims, scramble=True, rng=np.random.default_rng(seed_for(seed)))
