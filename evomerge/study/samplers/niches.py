"""Niches: recipes compete for documents, and a mate is sought who answers what one cannot (M2N2; Abrantes et al., 2025)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .arrival import arrived, note_arrival
from .cube import Cube, Vector
from .seeded import Common, Seeded, Space, seed_for
from .uniform import Qmc

DOCUMENTS = "documents"  # user attribute of a trial: its scores on the documents that every trial is scored on, in one order
TINY = 1e-9

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """A recipe of the archive: where it is, how far from feasible, its score on each document, which numbers had a say."""

    number: int
    point: Vector
    violation: float
    scores: Array
    used: NDArray[np.bool_]


@dataclass
class Archive:
    """The members told so far that nobody has pushed out; a function of who was told, in that order."""

    size: int
    alpha: float
    members: list[Member] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    def tell(self, member: Member) -> None:
        """The newcomer competes with all; the least fit leaves, an infeasible one before any feasible."""
        self.seen.append(member.number)
        self.members.append(member)
        if len(self.members) > self.size:
            fit = self.fitness()
            worst = min(range(len(fit)), key=lambda k: (-self.members[k].violation, fit[k], -self.members[k].number))
            del self.members[worst]

    def shared(self) -> Array:
        """Of every member the share of each document that competition leaves it: s / (Σ s)^α, scores counted from the lowest."""
        scores = np.array([member.scores for member in self.members])
        scores = scores - np.minimum(scores.min(axis=0), 0.0)
        shares: Array = scores / np.maximum(scores.sum(axis=0), TINY) ** self.alpha
        return shares

    def fitness(self) -> Array:
        """Σ over documents of what each member has of them."""
        fit: Array = self.shared().sum(axis=1)
        return fit

    def parents(self, rng: np.random.Generator) -> tuple[Member, Member]:
        """One by fitness; the other by what it answers and the first does not."""
        shares = self.shared()
        first = int(rng.choice(len(shares), p=_chances(shares.sum(axis=1))))
        attraction = np.maximum(shares - shares[first], 0.0).sum(axis=1)
        attraction[first] = 0.0
        if not attraction.any():
            attraction = np.ones(len(shares))
            attraction[first] = 0.0
        return self.members[first], self.members[int(rng.choice(len(shares), p=_chances(attraction)))]


class Niches(Seeded):
    """Evolution of an archive by competition for documents, attraction, and a split point with weights t and 1 - t.

    Args:
        archive: how many recipes live side by side; as many come from a Sobol sequence first.
        alpha: how strongly documents that many answer count for less.
        mutation: standard deviation of what is added to a child, in widths of the ranges.

    A trial tells its scores in the user attribute `documents`; without them its value is its only document.
    """

    wants_documents = True

    def __init__(
        self,
        *,
        archive: int = 20,
        alpha: float = 1.0,
        mutation: float = 0.05,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if archive < 2:
            raise TypeError(f"archive: a recipe needs a mate, so at least 2, not {archive}")
        self.size, self.alpha, self.mutation = archive, alpha, mutation
        self._archives: dict[str, Archive] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        if len(study.directions) > 1:
            raise ValueError("niches take one objective; for several use NSGA-II (`nsga2`) or TPE (`tpe`)")
        return super().infer_relative_search_space(study, trial)

    def propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        cube, archive = self.cube(space), self._caught_up(study, space)
        if len(archive.members) < min(self.size, 2) or len(archive.seen) < self.size:
            return Qmc(seed=self.seed).propose(study, trial, space)
        rng = np.random.default_rng(seed_for(self.seed, self.draw(study, trial)))
        return cube.params(_child(*archive.parents(rng), cube, rng, self.mutation))

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        note_arrival(study, trial)

    def _caught_up(self, study: Study, space: Space) -> Archive:
        """The archive after all results so far: the kept one if it only lacks the latest, else one told from the first."""
        trials = arrived(study, space)
        numbers, archive = [trial.number for trial in trials], self._archives.get(study.study_name)
        if archive is None or archive.seen != numbers[: len(archive.seen)]:
            archive = self._archives[study.study_name] = Archive(self.size, self.alpha)
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        for trial in trials[len(archive.seen) :]:
            archive.tell(_member(trial, self.cube(space), sign, set(self.idle(trial.params, space))))
        return archive


def _member(trial: FrozenTrial, cube: Cube, sign: float, idle: Container[str]) -> Member:
    assert trial.value is not None
    violation = sum(max(value, 0.0) for value in trial.constraints.values())
    scores = np.array(trial.user_attrs.get(DOCUMENTS) or [sign * trial.value], dtype=np.float64)
    used = np.array([name not in idle for name in cube.space])
    return Member(trial.number, cube.point(trial.params), violation, scores, used)


def _child(one: Member, other: Member, cube: Cube, rng: np.random.Generator, mutation: float) -> Vector:
    """Before the split t of the one and 1 - t of the other, after it the reverse; of a choice one of the two, and what had a
    say in only one of them is that one's."""
    n, t = len(cube), rng.random()
    share = np.where(np.arange(n) < rng.integers(n + 1), t, 1 - t)
    kept = (cube.options > 0) & (rng.random(n) < 0.5)
    share = np.where(cube.options > 0, kept.astype(np.float64), share)
    share = np.where(one.used == other.used, share, one.used.astype(np.float64))
    moved = np.where(cube.options > 0, 0.0, mutation * rng.standard_normal(n))
    child: Vector = np.clip(share * one.point + (1 - share) * other.point + moved, 0.0, 1.0)
    return child


def _chances(weights: Array) -> Array:
    chances: Array = (weights + TINY) / (weights + TINY).sum()
    return chances
