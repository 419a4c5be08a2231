"""Which sampler suits a search: by its dimensions, kinds of parameters, objectives and number of trials, with the reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from .borrowed import Gp, Tpe
from .cma_es import CmaEs
from .genetic import Nsga2, Nsga3
from .seeded import Common, Seeded, Space

GP_TRIALS = 150  # beyond them, or beyond so many dimensions, a Gaussian process takes seconds a proposal
GP_DIMENSIONS = 100
MARGINS_TRIALS = 400  # beyond them a proposal of margins takes more than a second
MARGINS_DIMENSIONS = 40  # at 30 they find more than CMA-ES on a landscape with noise, at 60 less
SHARE = 0.1  # of the time from one trial to the next that a proposal may take, at the end of the study
GENERATIONS = 8  # that a genetic search needs to get anywhere
SMALLEST, LARGEST = 12, 50  # population of a genetic search


@dataclass(frozen=True)
class Pick:
    """A sampler of the table, its options, and why this one."""

    name: str
    reason: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        options = "".join(f", {name} {value}" for name, value in self.options.items())
        return f"{self.name}{options}: {self.reason}"


def pick(
    space: Mapping[str, BaseDistribution],
    objectives: int = 1,
    trials: int = 200,
    *,
    pace: float | None = None,
    answers: bool = False,
) -> Pick:
    """The sampler for a space and a number of trials; `answers`: whether a trial tells what single documents were answered.

    `pace` is how many seconds there are from one trial to the next (the budget over the trials; with many workers they are few):
    a sampler that would take a tenth of them for a proposal is passed over.
    """
    open_ones = [d for d in space.values() if not d.single()]
    choices = sum(isinstance(d, CategoricalDistribution) for d in open_ones)
    counted = f"{len(open_ones) - choices} numbers, {choices} choices, {trials} trials"
    slow = {
        name for name in ("gp", "margins", "tpe") if pace is not None and seconds(name, len(open_ones), trials) > SHARE * pace
    }
    if objectives > 1:
        return _for_several(objectives, trials, counted, slow)
    if choices > len(open_ones) / 2 and "tpe" not in slow:
        return Pick("tpe", f"{counted}: most of the space are choices, of which TPE keeps a density each")
    if answers and trials <= MARGINS_TRIALS and len(open_ones) <= MARGINS_DIMENSIONS and "margins" not in slow:
        return Pick("margins", f"{counted}: answers to single documents tell more than their mean")
    if trials <= GP_TRIALS and len(open_ones) <= GP_DIMENSIONS and "gp" not in slow:
        takes = seconds("gp", len(open_ones), trials)
        return Pick("gp", f"{counted}: up to {GP_TRIALS} a Gaussian process gets most out of each, at up to {takes:.1f} s")
    if len(open_ones) > 100:
        return Pick("cmaes", f"{counted}: above 100 dimensions CMA-ES with a diagonal covariance, which few trials can teach")
    reason = "its proposals take milliseconds" if slow else "CMA-ES begins at the start and learns from every result"
    return Pick("cmaes", f"{counted}: {reason}")


def seconds(name: str, dims: int, trials: int) -> float:
    """Of the processor for a proposal after so many trials, from measurements at 20 to 300 dimensions (docs/scaling.md)."""
    if name == "gp":
        return 0.005 * dims + 0.0017 * trials
    if name == "margins":
        return 0.06 + 0.002 * dims + 0.001 * trials
    return 0.0002 * dims + 2.7e-6 * dims * trials if name == "tpe" else 0.005


def _for_several(objectives: int, trials: int, counted: str, slow: Collection[str]) -> Pick:
    population = min(max(trials // (2 * GENERATIONS), SMALLEST), LARGEST)
    told = f"{counted}, {objectives} objectives"
    if trials < GENERATIONS * SMALLEST and "tpe" not in slow:
        return Pick("tpe", f"{told}: too few trials for generations of a genetic search")
    if objectives > 3:
        options = {"population_size": population}
        return Pick("nsga3", f"{told}: with more than three nearly nothing is dominated; directions keep the front wide", options)
    return Pick("nsga2", f"{told}: a front of two or three, under the guards as constraints", {"population_size": population})


KINDS: dict[str, type[Seeded]] = {"cmaes": CmaEs, "tpe": Tpe, "gp": Gp, "nsga2": Nsga2, "nsga3": Nsga3}


class Auto(Seeded):
    """Whichever sampler `pick` names for the study at hand.

    Args:
        trials: how many the study will have, as far as known; it decides as much as the space does.
        pace: seconds from one trial to the next, where the clock ends the study.
    """

    def __init__(
        self,
        *,
        trials: int = 200,
        pace: float | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.trials, self.pace = trials, pace
        self._made: dict[str, Seeded] = {}

    def sampler(self, study: Study) -> Seeded:
        """The one that proposes; where the space is not known before the first trial, by the objectives alone."""
        pace = 0.0 if self.space is None else self.pace
        chosen = pick(self.space or {}, len(study.directions), self.trials, pace=pace)
        if chosen.name not in self._made:
            known: dict[str, Any] = {"seed": self.seed, "space": self.space, "start": self.starts, "active": self.active}
            self._made[chosen.name] = KINDS[chosen.name](**known, **chosen.options)
        return self._made[chosen.name]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        return self.sampler(study).infer_relative_search_space(study, trial)

    def propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        return self.sampler(study).propose(study, trial, space)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        return self.sampler(study).sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self.sampler(study).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.sampler(study).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.sampler(study).after_trial(study, trial, state, values)
