"""`evomerge search`: an experiment checked before anything is written, then run, or gone on with, in a folder of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.finite import refuse_nan
from evomerge.candidate.plan import plan
from evomerge.guards.criteria import refuse_undecidable
from evomerge.scoring.suite import Splits
from evomerge.study.clock import Clock
from evomerge.study.cluster import Cluster, connect
from evomerge.study.devices import Seat, seats
from evomerge.study.executor import Executor, make_executor
from evomerge.study.experiment import Experiment
from evomerge.study.lab import Lab, catalogue, split_documents
from evomerge.study.line import refuse_broken_line
from evomerge.study.loop import Loop
from evomerge.study.moves import refuse_missing_fisher
from evomerge.study.proposer import sampler_of
from evomerge.study.record import Record, held, room_in
from evomerge.study.sealed import refuse_second_look
from evomerge.study.storage import Copy, copying, refuse_unreachable
from evomerge.study.warmstart import kept
from evomerge.study.watch import Nobody, Watcher


def search(
    path: str | Path,
    out: str | Path,
    *,
    trials: int | None = None,
    budget: float | None = None,
    workers: int | None = None,
    ray: str | None = None,
    storage: str | None = None,
    reopen: bool = False,
    resume: bool = False,
    watch: Watcher | None = None,
    warm_start: Sequence[str | Path] = (),
) -> int:
    """Run, or go on with, the experiment in a file, into a folder of its own; returns the ending (0, 3, 4 or 5).

    The best recipes of the studies in `warm_start` are tried first, and the search goes on from the best start.

    Raises EvomergeError on bad input, before anything is written. A finished study is not run again.
    """
    started = time.monotonic()  # a budget counts from here: preparing takes longer than many a trial
    experiment = with_limits(Experiment.read(path), trials, budget)
    directory = Path(out)
    if ray is not None:
        connect(ray)
        directory = directory.resolve()  # other processes than this one write there
    if storage is not None:
        refuse_unreachable(storage)
    splits, fingerprints = prepare(experiment)
    taken = [] if ray is not None else seats(experiment.scoring, workers)
    identity = {**experiment.identity(), "documents": splits.hash, **fingerprints}
    if not reopen:
        refuse_second_look(directory, identity, splits, experiment.search.limits())
    watch = watch or Nobody()
    with (
        room_in(directory),
        held(Record.open(directory, identity, resume=resume)) as record,
        copying(record, storage, watch.note) as copy,
    ):
        if (done := record.read_json("certificate.json")) and done.get("limits") == experiment.search.limits():
            _bring_up(record, copy)
            return int(done["ending"])
        starts = [each.start for each in kept(record, [Path(folder) for folder in warm_start], experiment.space)]
        hire = partial(executor_of, experiment, workers, ray, taken, record.directory)
        clock = Clock(record, started)
        return Loop(experiment, record, splits, clock, hire, watch, copy, reopen, starts).run()


def _bring_up(record: Record, copy: Copy | None) -> None:
    """A finished study's copy gets what it lacks."""
    import optuna

    if copy is not None and record.read("journal.log"):
        journal = record.journal([optuna.study.StudyDirection.MAXIMIZE])  # it has directions of its own by now
        copy.begin(journal.directions, journal.trials())


def with_limits(experiment: Experiment, trials: int | None, budget: float | None) -> Experiment:
    """The command line's word over the file's on how long to search."""
    search = experiment.search
    return replace(experiment, search=replace(search, trials=trials or search.trials, budget=budget or search.budget))


def prepare(experiment: Experiment) -> tuple[Splits, dict[str, str]]:
    """Check everything that can be checked before a model runs; the splits, and a fingerprint of every model."""
    recipe = experiment.space.build(experiment.space.start())
    sampler_of(experiment)
    base = Checkpoint.open(recipe.base.location)
    sources = {name: Checkpoint.open(source.location) for name, source in recipe.sources.items()}
    for corner in experiment.space.corners():
        longer = plan(experiment.space.build(corner), base, sources).config
        experiment.scoring.refuse_longer(base.config, longer)
    splits = split_documents(experiment)
    refuse_undecidable(experiment.guard, splits.sealed)
    refuse_broken_line(recipe.base.model, experiment.guard, lambda: catalogue(experiment))
    for checkpoint in (base, *sources.values()):
        refuse_nan(checkpoint)
    refuse_missing_fisher(experiment.guard, {"base": base, **sources})
    prints = {"source base": base.fingerprint, **{f"source {name}": source.fingerprint for name, source in sources.items()}}
    return splits, prints


def executor_of(experiment: Experiment, workers: int | None, ray: str | None, taken: list[Seat], study: Path) -> Executor:
    """Who scores: the actors of a Ray cluster, this process, or several of this machine."""
    if ray is not None:
        return Cluster(partial(Lab, experiment, threads=1), ray, workers, devices=experiment.scoring.ranks, study=study)
    return make_executor(partial(Lab, experiment, threads=1 if len(taken) > 1 else None), len(taken), taken)
