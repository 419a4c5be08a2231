"""Margins: how clearly each document is answered, foretold for recipes that nobody has scored.

A score of 0 or 1 says little, and its mean over a few documents hardly more. The margin behind it, log p of the right answer over
that of the best wrong one, moves smoothly with the weights of a merge, and each document has its own. A Gaussian process for each
of them, with one kernel for all, learns from the same few trials what their mean would take hundreds for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import numpy as np
from cmaes import CMA, SepCMA
from numpy.typing import NDArray
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import log_ndtr, ndtr

from .arrival import arrived, note_arrival
from .cube import Cube, Vector
from .evolution import DIAGONAL_ABOVE
from .kriging import Array, Processes, noisy
from .seeded import Common, Seeded, Space, seed_for

ANSWERS = "answers"  # user attribute of a trial: {form: {task: one number a document, in one order for all}}
GRADED = "graded"  # user attribute of a trial: tasks whose numbers are scores; all others' are margins, right above 0
FORMS = ("plain", "healed")
HOPES = (0.0, 0.5, 0.0)  # standard deviations added to what is expected, in turn
FEWEST = 4  # trials that have answered a document before it is foretold
BLUR = 0.5  # of the squared leave-one-out error: with all of it every document would seem undecided
GENERATIONS, BROOD, STEP = 25, 20, 0.1  # of the search within what is foretold
RETRIES = 5  # of a point outside the cube, before it is put on its border

Combine = Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True)
class Told:
    """A form of a trial: where it was, its answers to each task, and how much above 0, its limit, each constraint came out."""

    point: Vector
    answers: Mapping[str, Array]
    over: Array


class Margins(Seeded):
    """The recipe whose answers are expected to be best, at every third proposal with some hope for the unknown.

    Args:
        first: trials before anything is foretold; the starts, then points around the best of them.
        sigma: the standard deviation of those points, in widths of the ranges.
        combine: the mean of every task as arrays → what is to be maximised; their plain mean by default.

    A trial tells its answers in the user attribute `answers`; where no trial has any, its value is its only document. Constraints
    are foretold as well, and what is likely to break one is worth less.
    """

    wants_answers = True

    def __init__(self, *, first: int = 8, sigma: float = 0.1, combine: Combine | None = None, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        if first < FEWEST:
            raise TypeError(f"first: nothing is foretold from fewer than {FEWEST} trials, not {first}")
        self.first, self.sigma, self.combine = first, sigma, combine or _mean

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        if len(study.directions) > 1:
            raise ValueError("margins take one objective; for several use NSGA-II (`nsga2`) or TPE (`tpe`)")
        return super().infer_relative_search_space(study, trial)

    def propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        cube, draw = self.cube(space), self.draw(study, trial)
        trials = arrived(study, space)
        trials = [trial for trial in trials if ANSWERS in trial.user_attrs] or trials
        if len(trials) < self.first:
            rng = np.random.default_rng(seed_for(self.seed, draw))
            centre = self._centre(trials, cube, study.direction)
            return cube.params(np.clip(centre + self.sigma * rng.standard_normal(len(cube)), 0.0, 1.0))
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        features = Features(cube, self, any("healed" in trial.user_attrs.get(ANSWERS, ()) for trial in trials))
        foretold = Foretold(trials, features, self.combine, study.direction)
        foretold = foretold.believing([other.params for other in running if space.keys() <= other.params.keys()])
        return cube.params(best_point(foretold, features, trials, HOPES[draw % len(HOPES)], seed_for(self.seed, draw)))

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        note_arrival(study, trial)

    def _centre(self, trials: Sequence[FrozenTrial], cube: Cube, direction: StudyDirection) -> Vector:
        """The best so far of the starts and what was drawn around them; before any is known the first start, or the middle."""
        sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0
        sound = [t for t in trials if all(value <= 0 for value in t.constraints.values())] or trials
        top = max(sound, key=lambda t: sign * _value(t), default=None)
        return cube.point(top.params if top else next(iter(self.starts), {}))


@dataclass(frozen=True)
class Features:
    """Points of the cube as the kernel sees them: options are equally far apart, what had no say lies in the middle."""

    cube: Cube
    sampler: Seeded
    healed: bool  # whether there are two forms: one more coordinate, 1 for the healed one

    def __call__(self, points: Array, healed: float = 1.0) -> Array:
        points = self._without_idle(points) if self.sampler.active else points
        columns = [self._spread(points[:, i], options) for i, options in enumerate(self.cube.options)]
        form = [np.full((len(points), 1), healed)] if self.healed else []
        return np.concatenate(columns + form, axis=1)

    def _spread(self, column: Array, options: int) -> Array:
        if not options:
            return column[:, None]
        index = np.minimum((column * options).astype(int), options - 1)
        corners: Array = np.eye(options)[index] / math.sqrt(2)  # one apart from each other
        return corners

    def _without_idle(self, points: Array) -> Array:
        names = list(self.cube.space)
        idle = [set(self.sampler.idle(self.cube.params(point), names)) for point in points]
        return np.where([[name in each for name in names] for each in idle], 0.5, points)


class Foretold:
    """The objective of any point, from the answers of trials."""

    def __init__(self, trials: Sequence[FrozenTrial], features: Features, combine: Combine, direction: StudyDirection) -> None:
        self.features, self.combine = features, combine
        told = [each for trial in trials for each in _told(trial, features, direction)]
        self.tasks = sorted({task for each in told for task in each.answers})
        graded = {"", *(task for trial in trials for task in trial.user_attrs.get(GRADED, ()))}
        self.graded = np.array([task in graded for task in self.tasks])
        self.parts = _parts([each for each in told if len(each.answers) == len(self.tasks)], self.tasks)
        limits = max(len(each.over) for each in told)
        limited = [each for each in told if limits and len(each.over) == limits]
        self.limits = self._limits(limited) if len(limited) >= FEWEST else None
        self.spread = float(np.std([_value(trial) for trial in trials])) or 1.0

    def _limits(self, limited: Sequence[Told]) -> Processes:
        """Few numbers tell no lengths of their own: what moves documents moves constraints."""
        points, over = _stacked(limited, [each.over for each in limited])
        return Processes(points, over, noisy(self.parts[0].processes.kernel, points, over))

    def believing(self, running: Sequence[Mapping[str, Any]]) -> Foretold:
        """The same, certain of what is being scored."""
        if running:
            points = self.features(np.array([self.features.cube.point(params) for params in running]))
            self.parts = [part._replace(processes=part.processes.believing(points)) for part in self.parts]
        return self

    def __call__(self, points: Array, hope: float) -> Array:
        """[k]: what is expected at points [k, d] of the cube, less what it may cost to break a constraint."""
        x = self.features(points)
        return self.combine(self._means(x, hope)) - self._risk(x)

    def _means(self, x: Array, hope: float) -> dict[str, Array]:
        """Of every task: over its documents, the mean of the chance of a right answer, or of the score."""
        belongs = [np.eye(len(self.tasks))[part.owner] for part in self.parts]
        total = sum(part.right(x, hope, self.graded[part.owner]) @ mine for part, mine in zip(self.parts, belongs, strict=True))
        means = total / sum(mine.sum(axis=0) for mine in belongs)
        return dict(zip(self.tasks, np.asarray(means).T, strict=True))

    def _risk(self, x: Array) -> Array:
        """-log of the chance to keep every constraint (Gardner et al., 2014), in units of what values differ by."""
        if self.limits is None:
            return np.zeros(len(x))
        mean, deviation = self.limits.predict(x)
        kept = log_ndtr(-mean / (np.sqrt(deviation**2 + self.limits.kernel.noise)[:, None] * self.limits.scale))
        risk: Array = -self.spread * kept.sum(axis=1)
        return risk


def best_point(foretold: Foretold, features: Features, trials: Sequence[FrozenTrial], hope: float, seed: int) -> Vector:
    """Where most is foretold: an evolution begun at the best of the trials, and that trial where it finds nothing better."""
    tried = np.array([features.cube.point(trial.params) for trial in trials])
    centre: Vector = tried[int(foretold(tried, 0.0).argmax())]
    if len(centre) == 1:  # an evolution needs two dimensions
        many = GENERATIONS * BROOD
        within = (np.arange(many) + np.random.default_rng(seed).random(many)) / many
        line = np.array([0.0, *within, 1.0])[:, None]
        return np.asarray(line[int(foretold(line, hope).argmax())])
    bounds = np.tile([0.0, 1.0], (len(centre), 1))
    kind = CMA if len(centre) <= DIAGONAL_ABOVE else SepCMA
    evolution = kind(centre, STEP, bounds=bounds, n_max_resampling=RETRIES, population_size=BROOD, seed=seed)
    top, best = -math.inf, centre
    for _ in range(GENERATIONS):
        brood = np.array([evolution.ask() for _ in range(BROOD)])
        worth = foretold(brood, hope)
        if worth.max() > top:
            top, best = float(worth.max()), brood[int(worth.argmax())]
        evolution.tell([(point, -float(value)) for point, value in zip(brood, worth, strict=True)])
    return best


class Part(NamedTuple):
    """The documents of a rung, and the place of the task that each belongs to."""

    owner: NDArray[np.int64]
    processes: Processes

    def right(self, x: Array, hope: float, graded: NDArray[np.bool_]) -> Array:
        """[k, m]: the chance that each document is answered right, a graded one's score itself."""
        mean, deviation = self.processes.predict(x)
        spread = deviation[:, None] * self.processes.scale
        hoped = mean + hope * spread
        chance = ndtr(hoped / np.sqrt(spread**2 + BLUR * self.processes.missed))
        return np.where(graded, hoped, chance)


def _parts(told: Sequence[Told], tasks: Sequence[str]) -> list[Part]:
    """One for the documents that all have answered, one for those that only some have, and so on up the rungs."""
    low = np.zeros(len(tasks), dtype=np.int64)
    parts: list[Part] = []
    for rung in sorted({tuple(len(each.answers[task]) for task in tasks) for each in told}):
        high = np.maximum(low, rung)
        there = [each for each in told if all(len(each.answers[task]) >= n for task, n in zip(tasks, high, strict=True))]
        if len(there) >= FEWEST or not parts:
            slices = [slice(a, b) for a, b in zip(low, high, strict=True)]
            answers = [np.concatenate([each.answers[t][s] for t, s in zip(tasks, slices, strict=True)]) for each in there]
            parts.append(Part(np.repeat(np.arange(len(tasks)), high - low), Processes(*_stacked(there, answers))))
        low = high
    return parts


def _stacked(told: Sequence[Told], answers: Sequence[Array]) -> tuple[Array, Array]:
    return np.array([each.point for each in told]), np.array(answers)


def _told(trial: FrozenTrial, features: Features, direction: StudyDirection) -> list[Told]:
    """The forms of a trial; its constraints are of the last."""
    sign = 1.0 if direction == StudyDirection.MAXIMIZE else -1.0
    forms = trial.user_attrs.get(ANSWERS) or {"plain": {"": [sign * _value(trial)]}}
    at = features.cube.point(trial.params)[None]
    over = np.array([value for _, value in sorted(trial.constraints.items())])
    names = [form for form in FORMS if form in forms]
    return [
        Told(
            features(at, float(form == "healed"))[0],
            {task: np.array(answers) for task, answers in forms[form].items()},
            over if form == names[-1] else np.empty(0),
        )
        for form in names
    ]


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _mean(means: Mapping[str, Array]) -> Array:
    return np.asarray(np.mean(list(means.values()), axis=0))
