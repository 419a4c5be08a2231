"""What all samplers of the table share: randomness from (seed, trial number), and a search space that stays whole.

A sampler keeps nothing that the study's trials do not tell: it draws from a generator seeded with its seed and the number of the
trial, and rebuilds its state from the finished trials. A study killed after any trial and rebuilt with `add_trial` therefore goes
on as if nothing had happened, provided that the trials, failed ones too, keep order, params, values and system attributes.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypedDict

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study
from optuna.trial import FrozenTrial

from .cube import Cube

Space = dict[str, BaseDistribution]
Start = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
Active = Callable[[Mapping[str, Any]], Container[str]]  # which parameters the values of a trial leave a say
DRAW = "evomerge:draw"  # on a trial: the number that it was seeded with


class Common(TypedDict, total=False):
    """What every sampler may be given; see `Seeded`."""

    seed: int
    space: Mapping[str, BaseDistribution] | None
    start: Start
    active: Active | None


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
        start: where to begin, by name, or several such; the very first proposals. CMA-ES begins around the one, or the best.
        active: which parameters the values of a trial leave a say; nothing is learned from what the others were.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        space: Mapping[str, BaseDistribution] | None = None,
        start: Start = None,
        active: Active | None = None,
    ) -> None:
        self.seed, self.active = seed, active
        self.space = None if space is None else dict(sorted(space.items()))
        self.starts = [dict(start)] if isinstance(start, Mapping) else [dict(each) for each in start or ()]
        self._learned: dict[str, IntersectionSearchSpace] = {}
        self._cube: Cube | None = None
        self._drawn = ("", 0, 0)  # of a study: how many of its trials were looked at, and the draw that comes after theirs

    @abstractmethod
    def propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        """Values for all of `space`, or for a part of it."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Number the draw: as the trial, with one worker. Where a kill lost trials of several workers, those that finished move
        up in number, and drawing by it would propose the last of them again."""
        name, looked, draw = self._drawn
        if name != study.study_name or looked > trial.number:
            looked, draw = 0, 0
        for other in study.get_trials(deepcopy=False)[looked : trial.number]:
            draw = max(draw, other.system_attrs.get(DRAW, other.number) + 1)
        self._drawn = study.study_name, trial.number, draw
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
        start = self.beginning(study, trial, search_space)
        if start is not None:
            cube = self.cube(search_space)
            return cube.params(cube.point({})) | {name: start[name] for name in search_space if name in start}
        return proposal

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        start = self.beginning(study, trial, [param_name])
        if start is not None and param_name in start:
            return start[param_name]
        rng = np.random.default_rng(seed_for(self.seed, self.draw(study, trial), param_name))
        return Cube({param_name: param_distribution}).params(rng.random(1))[param_name]

    def idle(self, params: Mapping[str, Any], names: Iterable[str]) -> list[str]:
        """Those of the names that had no say in a trial with these values."""
        if self.active is None:
            return []
        used = self.active(params)
        return [name for name in names if name not in used]

    def beginning(self, study: Study, trial: FrozenTrial, names: Container[str]) -> dict[str, Any] | None:
        """The beginning that is this trial's to propose, None after as many trials in this space as there are beginnings."""
        others = (other for other in study.get_trials(deepcopy=False) if other.number != trial.number)
        here = (other for other in others if any(name in names for name in other.params))
        begun = sum(1 for _ in islice(here, len(self.starts)))
        return self.starts[begun] if begun < len(self.starts) else None

    def cube(self, space: Space) -> Cube:
        """The cube of a space; that of the last one again where nothing has changed, with all that it has worked out."""
        cube = self._cube  # once: another thread may put its own there
        if cube is None or cube.space != space:
            cube = self._cube = Cube(space)
        return cube
