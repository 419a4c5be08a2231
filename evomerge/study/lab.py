"""What a worker holds between jobs: the sources, one live model, a scorer; a recipe goes in, its scores come out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from evomerge.candidate import live
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.merge import card
from evomerge.candidate.save import save
from evomerge.candidate.stored import from_disk
from evomerge.candidate.stream import Candidate, Sources, materialize
from evomerge.document import nearest
from evomerge.errors import GuardError
from evomerge.guards.ewc import Anchor, Penalties
from evomerge.guards.kl import Reference, divergence, pad, reference
from evomerge.healing.healer import Healer
from evomerge.healing.texts import read_texts
from evomerge.recipe import Recipe, locate
from evomerge.scoring import Scorer, make_scorer
from evomerge.scoring.contamination import refuse_contamination
from evomerge.scoring.suite import GuardConfig, Splits, split
from evomerge.study.executor import Job, Result
from evomerge.study.experiment import Experiment


@dataclass
class Lab:
    """Made once in each worker; `evaluate` does one job."""

    experiment: Experiment
    threads: int | None = None

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
        penalties = self.penalties if job.measure else None
        self._load(candidate, penalties)
        with self.clock("score"):
            scores = self.scorer.score(job.documents)
        distances = {f"ewc {name}": total for name, total in penalties.totals.items()} if penalties else {}
        if job.measure and self.experiment.guard.kl_prompts:
            distances |= self._divergence(candidate)
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

    # --- how far a candidate moved

    @cached_property
    def penalties(self) -> Penalties | None:
        """What sums the elastic weights guard; None where the experiment has none."""
        ewc, models = self.experiment.guard.ewc, {"base": self.start.base, **self.start.sources}
        if ewc is None:
            return None
        return Penalties([Anchor.open(name, self.sources.checkpoint(models[name].location), ewc.fisher) for name in ewc.limits])

    def _divergence(self, candidate: Candidate) -> dict[str, float]:
        """KL(base ‖ candidate) in nats over the tokens of the guard's prompts, mean and 95th percentile."""
        base = self._reference
        with self.clock("kl"):
            module = getattr(self.scorer, "module", None)
            if module is None:
                module = self.healer.module(self.start, candidate.config)
                live.load(candidate, module)
            mean, p95 = divergence(module, base)
        return {"kl": mean, "kl p95": p95}

    @cached_property
    def _reference(self) -> Reference:
        prompts = self.experiment.guard.kl_prompts
        assert prompts is not None
        tokenizer = self.healer.tokenizer(self.start)
        tokens = [tokenizer.encode(text) for text in read_texts(locate(prompts))]
        return reference(self.healer.parent(self.start.base.location), pad(tokens))


def refuse_missing_fisher(guard: GuardConfig, models: Mapping[str, Checkpoint]) -> None:
    """Raises GuardError where the elastic weights guard names no source, or one without a Fisher of its own."""
    for name in guard.ewc.limits if guard.ewc else ():
        if name not in models:
            raise GuardError(f"guard.ewc.limits: no source {name!r}{nearest(name, tuple(models))}")
        Anchor.open(name, models[name], guard.ewc.fisher if guard.ewc else "")


def scorer_of(experiment: Experiment) -> Scorer:
    """The experiment's scorer, no model in it yet; it knows its documents all the same."""
    base = Checkpoint.open(experiment.space.build(experiment.space.start()).base.location)
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
