"""What a worker holds between jobs: the sources, one live model, a scorer; a recipe goes in, its scores come out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

from evomerge.candidate.chat import template_of
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.merge import card
from evomerge.candidate.save import save
from evomerge.candidate.stored import from_disk
from evomerge.candidate.stream import Candidate, Sources, materialize
from evomerge.guards.ewc import Penalties
from evomerge.healing.healer import Healer
from evomerge.recipe import Recipe
from evomerge.scoring import Scorer, make_scorer
from evomerge.scoring.contamination import refuse_contamination
from evomerge.scoring.suite import Splits, split
from evomerge.study.executor import Job, Result
from evomerge.study.experiment import Experiment
from evomerge.study.moves import Moves
from evomerge.study.objectives import PARAMETERS


@dataclass
class Lab:
    """Made once in each worker; `evaluate` does one job."""

    experiment: Experiment
    threads: int | None = None
    parent: Path | None = None  # a model directory or recipe that KL is measured against; None: the base

    def __post_init__(self) -> None:
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
        self.start: Recipe = self.experiment.space.build(self.experiment.space.start())
        self.scorer = scorer_of(self.experiment)
        if self.experiment.scoring.scorer == "hf":
            self.scorer.load(from_disk(self.start.base.location))  # its live module is lent to healing and KL
        self.sources = Sources(resident=True, device=getattr(self.scorer, "device", "cpu"))
        self.healer = Healer(self.sources, getattr(self.scorer, "module", None))
        self.moves = Moves(self.experiment.guard, self.start, self.sources, self.healer)
        self.loaded: str | None = None
        self.clock = self.scorer.clock
        self._idle_since: float | None = None

    def evaluate(self, job: Job) -> Result:
        """Merge, heal where the recipe says so, load and score: only what is not there yet."""
        self.clock.take()  # of a job that failed
        self._count_waiting()
        try:
            return self._evaluate(job)
        finally:
            self._idle_since = time.perf_counter()

    def _evaluate(self, job: Job) -> Result:
        candidate = self._candidate(job)
        if job.save and job.recipe:
            save(candidate, job.save, copy_from=self.sources.checkpoint(self.start.base.location).path, card=card(job.recipe))
        penalties = self.moves.penalties if job.measure else None
        self._load(candidate, penalties)
        with self.clock("score"):
            scores = self.scorer.score(job.documents)
        distances = {f"ewc {name}": total for name, total in penalties.totals.items()} if penalties else {}
        if job.measure and self.experiment.guard.kl_prompts:
            with self.clock("kl"):
                parent = self._kl_parent()
                module = getattr(self.scorer, "module", None) if self.loaded == candidate.key else None
                distances |= self.moves.divergence(candidate, parent, module)
        if job.measure and PARAMETERS in self.experiment.search.objectives:
            distances[PARAMETERS] = float(sum(math.prod(info.shape) for info in candidate.manifest.values()))
        return Result(scores, distances, self.clock.take())

    def _count_waiting(self) -> None:
        """The engine stood idle since the last job."""
        if self._idle_since is not None:
            self.clock.add("wait", time.perf_counter() - self._idle_since)

    def close(self) -> None:
        """Ends the scorer, and with it an engine that it holds."""
        self.scorer.close()
        self.loaded = None

    def _candidate(self, job: Job) -> Candidate:
        if job.recipe is None:
            assert job.model is not None
            return from_disk(job.model)
        if job.recipe.heal is None:
            return materialize(job.recipe, self.sources)
        with self.clock("heal"):
            before = self.healer.trained
            candidate = self.healer(job.recipe)
        if self.healer.trained != before:
            self.loaded = None  # healing borrowed the live model
        return candidate

    def _load(self, candidate: Candidate, penalties: Penalties | None) -> None:
        """Into the live model, unless it is there; what penalties watch is summed on the way."""
        watched = penalties.watch(candidate) if penalties else candidate
        if candidate.key != self.loaded:
            self.loaded = None
            with self.clock("swap"):
                self.scorer.load(watched)
            self.loaded = candidate.key
        elif penalties:
            for _ in watched.weights:
                pass

    def _kl_parent(self) -> Candidate | None:
        """What KL is measured against, where it is not the base and was not asked yet."""
        if self.parent is None or self.moves.asked:
            return None
        if self.parent.is_dir():
            return from_disk(self.parent)
        return self._candidate(Job(Recipe.read(self.parent), {}))


def scorer_of(experiment: Experiment) -> Scorer:
    """The experiment's scorer, no model in it yet; it knows its documents all the same. Raises ScoringError where it is to
    speak in conversations and the base has no template for them."""
    base = Checkpoint.open(experiment.space.build(experiment.space.start()).base.location)
    experiment.scoring.refuse_no_template(template_of(base.path), base.path)
    return make_scorer(experiment.scoring, experiment.suite, experiment.guard, model=base.path, root=experiment.root)


def split_documents(experiment: Experiment) -> Splits:
    """The three splits of the experiment's documents. Raises SuiteError where they do not suffice, GuardError where
    guards share some with targets."""
    scorer = scorer_of(experiment)
    try:
        refuse_contamination(experiment.suite, experiment.guard, scorer.contents())
        splits = split(experiment.suite, experiment.guard, scorer.catalogue())
        for documents in (splits.search, splits.select, splits.sealed):
            scorer.check(documents)
        return splits
    finally:
        scorer.close()


def catalogue(experiment: Experiment) -> dict[str, list[str]]:
    """The hash of every document of every task of the experiment."""
    scorer = scorer_of(experiment)
    try:
        return scorer.catalogue()
    finally:
        scorer.close()
