"""Optuna's NSGA-II and NSGA-III for several objectives, made to choose the same parents after a resume."""

from __future__ import annotations

from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler
from optuna.samplers._ga import BaseGASampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.study import Study
from optuna.trial import FrozenTrial

from .borrowed import Filled
from .seeded import seed_for


class Steady(BaseGASampler):
    """Parents come in the order of their numbers.

    Optuna hands out a generation's parents in order of rank when it first selects them and in order of number when it finds them
    in the study's attributes: a resumed study would select anew and cross other parents.
    """

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        known = study._storage.get_study_system_attrs(study._study_id)
        for earlier in range(1, generation):  # from the first on, so that a resumed study does not recurse through all of them
            if f"{self._get_parent_cache_key_prefix()}{earlier}" not in known:
                super().get_parent_population(study, earlier)
        return sorted(super().get_parent_population(study, generation), key=lambda parent: parent.number)


class SteadyNsga2(Steady, NSGAIISampler):
    """NSGA-II with steady parents."""


class SteadyNsga3(Steady, NSGAIIISampler):
    """NSGA-III with steady parents: who fills a niche is drawn by the generation, not by the trial that asks first."""

    selection_seed = 0

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        drawn = LazyRandomState(seed_for(self.selection_seed, "parents", generation))
        setattr(self._elite_population_selection_strategy, "_rng", drawn)  # noqa: B010 - typed as a function by Optuna
        return super().select_parent(study, generation)


class Nsga2(Filled):
    """NSGA-II (Deb et al., 2002): the Pareto front of several objectives, under constraints."""

    make = SteadyNsga2


class Nsga3(Filled):
    """NSGA-III (Deb & Jain, 2014): a front of four objectives or more, kept wide by reference directions."""

    make = SteadyNsga3

    def _fresh(self, *place: int | str) -> BaseSampler:
        sampler = super()._fresh(*place)
        assert isinstance(sampler, SteadyNsga3)
        sampler.selection_seed = self.seed
        return sampler
