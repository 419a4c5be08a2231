"""What all samplers of the table share: randomness from (seed, trial number), and a search space that stays whole.

A sampler keeps nothing that the study's trials do not tell: it draws from a generator seeded with its seed and the number of the
trial, and rebuilds its state from the finished trials. A study killed after any trial and rebuilt with `add_trial` therefore goes
on as if nothing had happened, provided that the trials, failed ones too, keep order, params, values and system attributes.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial

from .cube import Cube

Space = dict[str, BaseDistribution]
DRAW = "evomerge:draw"  # on a trial: the number that it was seeded with


def seed_for(seed: int, *place: int | str) -> int:
    """32 bits that are a function of the seed and the place they are used in."""
    words = [seed, *(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in place)]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


class Seeded(BaseSampler):
    """The base of our samplers; one implements `propose`.

    Args:
        seed: 0 or more; with the trial number it decides every draw.
        space: the whole space where it is known, as in `study.ask(space)`. Without it the sampler learns what all finished trials
            have in common, as in a define-by-run objective, and other parameters are drawn one by one.
        start: where to begin, by name; the very first proposal, except for CMA-ES, which begins around it.
    """

    def __init__(
        self, *, seed: int = 0, space: Mapping[str, BaseDistribution] | None = None, start: Mapping[str, Any] | None = None
    ) -> None:
        self.seed = seed
        self.space = None if space is None else dict(sorted(space.items()))
        self.start = dict(start or {})
        self._learned: dict[str, IntersectionSearchSpace] = {}

    @abstractmethod
    def propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        """Values for all of `space`, or for a part of it."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Number the draw: as the trial, with one worker. Where a kill lost trials of several workers, those that finished move
        up in number, and drawing by it would propose the last of them again."""
        others = (other for other in study.get_trials(deepcopy=False) if other.number < trial.number)
        draw = max((other.system_attrs.get(DRAW, other.number) + 1 for other in others), default=0)
        study._storage.set_trial_system_attr(trial._trial_id, DRAW, draw)

    def draw(self, study: Study, trial: FrozenTrial) -> int:
        return int(study._storage.get_trial(trial._trial_id).system_attrs[DRAW])

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        space = self.space
        if space is None:
            space = self._learned.setdefault(study.study_name, IntersectionSearchSpace()).calculate(study)
        return {name: distribution for name, distribution in space.items() if not distribution.single()}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        if not search_space:
            return {}
        proposal = self.propose(study, trial, search_space)
        if self._begins(study, trial, search_space):
            cube = Cube(search_space)
            return cube.params(cube.point({})) | {name: self.start[name] for name in search_space if name in self.start}
        return proposal

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        if param_name in self.start and self._begins(study, trial, [param_name]):
            return self.start[param_name]
        rng = np.random.default_rng(seed_for(self.seed, self.draw(study, trial), param_name))
        return Cube({param_name: param_distribution}).params(rng.random(1))[param_name]

    def _begins(self, study: Study, trial: FrozenTrial, names: Container[str]) -> bool:
        """Whether nothing has been tried in this space yet and a start is given."""
        others = (other for other in study.get_trials(deepcopy=False) if other.number != trial.number)
        return bool(self.start) and not any(name in names for other in others for name in other.params)
