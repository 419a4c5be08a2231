"""The loop: parents, baselines, trials, and at the end one certified model; every step on disk before the next begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.candidate.checkpoint import Checkpoint, refuse_nan
from evomerge.candidate.plan import Depths, plan
from evomerge.errors import EvomergeError, StudyError, SuiteError
from evomerge.guards.criteria import refuse_undecidable
from evomerge.recipe import Recipe
from evomerge.scoring.suite import Splits
from evomerge.study.anytime import FILE as ACCEPTED
from evomerge.study.attribution import attribute
from evomerge.study.baselines import baselines, parents
from evomerge.study.certify import Closing
from evomerge.study.cluster import Cluster, connect
from evomerge.study.devices import Seat, seats
from evomerge.study.executor import Clock, Executor, Job, Life, Result, make_executor
from evomerge.study.experiment import Experiment
from evomerge.study.interrupts import uninterrupted
from evomerge.study.lab import Lab, catalogue, split_documents
from evomerge.study.line import ledger_beside, refuse_broken_line
from evomerge.study.memory import ask, create_study, tell
from evomerge.study.moves import refuse_missing_fisher
from evomerge.study.objectives import is_less_better, refuse_textless
from evomerge.study.proposer import picked, sampler_of
from evomerge.study.race import Arrival, Decision, Race
from evomerge.study.record import Journal, Record, held, room_in
from evomerge.study.sealed import openings, refuse_second_look
from evomerge.study.selection import Judge, contending, finalists
from evomerge.study.stages import Stages
from evomerge.study.storage import Copy, copying, refuse_unreachable
from evomerge.study.trial import Arena, Outcome, live
from evomerge.study.warmstart import kept
from evomerge.study.watch import Nobody, Watcher

if TYPE_CHECKING:
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial, Trial

FAILURES_IN_A_ROW = 20  # after so many the fault is not the candidates'
MARGIN = 1.3  # of the time that the ending is expected to take
LATELY = 10  # trials that say what a document takes now: a machine that was busy at the beginning may be so no more


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
        return Loop(experiment, record, splits, hire, watch, copy, reopen, starts).run()


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


@dataclass
class Loop:
    """A running study."""

    experiment: Experiment
    record: Record
    splits: Splits
    hire: Callable[[], Executor]
    watch: Watcher
    copy: Copy | None = None
    reopen: bool = False
    starts: Sequence[Mapping[str, Any]] = ()  # beginnings from earlier studies
    outcomes: list[Outcome] = field(default_factory=list)  # of trials, in the order in which they ended
    baselines: dict[str, Outcome] = field(default_factory=dict)
    _judged: int = 0  # outcomes that were looked at for early acceptance
    _told: list[FrozenTrial] = field(default_factory=list)  # the trials of `outcomes`

    def run(self) -> int:
        self._write_header()
        spent = self.record.read_json("clock.json") or {"seconds": 0.0, "loop": 0.0}
        self.clock, self.own_time = Clock(spent["seconds"]), float(spent["loop"])
        base = self.experiment.space.build(self.experiment.space.start()).base.model
        race = Race(len(self.splits.rungs), self.experiment.search.eta)
        self.arena = Arena(self.experiment, self.splits, race, ledger=ledger_beside(base))
        self.executor = self.hire()
        try:
            self._score_parents()
            self._score_baselines()
            self._search()
            self._write_clock()
            self._attribute()
            certificate = Closing(
                self.experiment,
                self.record,
                self.splits,
                self.executor,
                self.arena.parents,
                self.baselines,
                self.outcomes,
                self.watch,
                self.reopen,
            ).certify()
            self._write_clock()
        finally:
            self.executor.close()
        return int(certificate["ending"])

    def _write_header(self) -> None:
        self.record.write("experiment.yaml", self.experiment.to_yaml())
        self.record.write_json("splits.json", {**self.splits.to_data(), "hash": self.splits.hash})

    def _write_clock(self) -> None:
        """Seconds of the study by the wall, and how many of them the loop itself took: asking, telling, recording."""
        self.record.write_json("clock.json", {"seconds": round(self.clock.elapsed(), 3), "loop": round(self.own_time, 3)})

    @contextmanager
    def _own_time(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.own_time += time.perf_counter() - begun

    # --- parents: on every search document, so that a candidate's subset can be compared with the whole

    def _score_parents(self) -> None:
        recipes = parents(self.experiment.space)
        self.watch.phase("parents", len(recipes))
        known = {name: scores for name in recipes if (scores := self.record.read_scores(f"baseline/{name}"))}
        lives = (self._parent(name, recipe) for name, recipe in recipes.items() if name not in known)
        for name, result in self.executor.run(lives):
            if result.error:
                raise StudyError(f"{name}: the parent cannot be scored: {result.error}")
            notes = {"state": "parent", "seconds": result.seconds, "distances": result.distances}
            self.record.write_scored(f"baseline/{name}", recipes[name], result.scores, notes)
            known[name] = result.scores
        self.arena.parents = {name: known[name] for name in recipes}
        refuse_textless(self.experiment.search.objectives, self.experiment.suite, self.arena.base)
        self._refuse_negative_means()
        for name in recipes:
            self.watch.scored(self._enter(name, recipes[name]), None)

    def _refuse_negative_means(self) -> None:
        """Metrics of which less is better are negated in rows: they can be averaged, and nothing else."""
        kind = self.experiment.suite.aggregate
        for task in self.experiment.suite.tasks:
            if kind in ("geometric", "relative") and min(scores.mean(task) for scores in self.arena.parents.values()) < 0:
                raise SuiteError(
                    f"suite.aggregate: {kind} takes no task whose scores are below 0, as {task}'s are; use mean or min"
                )

    def _parent(self, name: str, recipe: Recipe) -> Life[tuple[str, Result]]:
        job = Job(recipe, self.splits.rung(len(self.splits.rungs) - 1), measure=self.experiment.guard.measures)
        return name, (yield job)

    def _enter(self, name: str, recipe: Recipe) -> Outcome:
        """A parent takes its place at every rung of the race."""
        distances = (self.record.read_json(f"baseline/{name}/verdict.json") or {}).get("distances", {})
        price = self.experiment.guard.price(distances)
        outcome = Outcome(name, recipe, rung=len(self.splits.rungs) - 1, scores=self.arena.parents[name], distances=distances)
        for rung in range(len(self.splits.rungs)):
            estimate = self.arena.estimate(outcome.scores.select(self.splits.rung(rung)))
            self.arena.race.arrive(Arrival(name, rung, estimate.value - price, baseline=True))
            outcome = replace(outcome, estimate=estimate)
        return outcome

    # --- baselines: candidates like any other, from recipes that somebody would try by hand

    def _score_baselines(self) -> None:
        recipes = baselines(self.experiment.space) if self.experiment.search.baselines else {}
        self.watch.phase("baselines", len(recipes))
        new = {}
        for name, recipe in recipes.items():
            if stored := self._stored(f"baseline/{name}", name, recipe):
                self._count_baseline(stored)
            else:
                new[name] = recipe
        for outcome in self.executor.run(live(name, recipe, self.arena, earns_healing=False) for name, recipe in new.items()):
            self.record.write_scored(f"baseline/{outcome.name}", outcome.recipe, outcome.scores, outcome.to_data())
            self._count_baseline(outcome)

    def _count_baseline(self, outcome: Outcome) -> None:
        self.baselines[outcome.name] = outcome
        self.watch.scored(outcome, self._best())

    # --- trials

    def _search(self) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = self._directions()
        self.journal: Journal = self.record.journal(directions)
        layers = Depths(Checkpoint.open(self.experiment.space.build(self.experiment.space.start()).base.location).tensors).layers
        self.stages = Stages(self.experiment, self.record, layers, self.starts)
        self.study: Study = create_study(directions, self.stages.sampler)
        if chosen := picked(self.experiment, self.record):
            self.watch.phase(f"auto picks {chosen}", None)
        self.watch.phase("trials", self.experiment.search.trials)
        self._replay()
        for trial, outcome in self.executor.run(self._proposals()):
            with self._own_time(), uninterrupted():
                self._tell(trial, outcome)
            self._refuse_endless_failure()

    def _directions(self) -> list[StudyDirection]:
        from optuna.study import StudyDirection

        search, suite, guard = self.experiment.search, self.experiment.suite, self.experiment.guard
        cost = [is_less_better(name, suite, guard) for name in search.objectives]
        return [StudyDirection.MINIMIZE if less else StudyDirection.MAXIMIZE for less in cost]

    def _replay(self) -> None:
        """Everything the journal holds, told again in its order: the sampler and the race stand where they stood."""
        if self.copy is not None:
            self.copy.begin(self.journal.directions, self.journal.trials())
        for trial in self.journal.trials():
            self.study.add_trial(trial)
            self._told.append(trial)
            outcome = self._read_trial(trial)
            self.outcomes.append(outcome)
            self.watch.scored(outcome, self._best())
        self.record.keep_trials({outcome.name for outcome in self.outcomes})

    def _read_trial(self, trial: FrozenTrial) -> Outcome:
        folder, recipe = trial.user_attrs["folder"], self.stages.built(trial.params)
        outcome = self._stored(f"trials/{folder}", folder, recipe)
        if outcome is None:
            raise StudyError(
                f"{self.record.directory / 'trials' / folder}: is in the journal and not on disk; restore it, or begin anew"
            )
        return outcome

    def _proposals(self) -> Iterator[Life[tuple[Trial, Outcome]]]:
        proposed = len(self.outcomes)
        # numbers of what several workers had in hand when they were killed are not given again: a folder keeps its name
        number = 1 + max((int(outcome.name.split("-")[0]) for outcome in self.outcomes), default=-1)
        while proposed < self.experiment.search.trials and self._time_left() and not self._accepted():
            proposed += 1
            with self._own_time():
                self._advance()
                trial = ask(self.study, self.stages.distributions)
            yield self._trial(trial, number)
            number += 1

    def _advance(self) -> None:
        """To the second stage, if it is due."""
        if not self.experiment.search.refine:
            return
        budget = self.experiment.search.budget
        spent = self.clock.elapsed() / budget if budget else 0.0
        params = [trial.params for trial in self._told]
        if self.stages.advance(self.outcomes, params, spent):
            self.study.sampler = self.stages.sampler
            self.watch.phase("trials, layer by layer", self.experiment.search.trials - len(self.outcomes))

    def _trial(self, trial: Trial, number: int) -> Life[tuple[Trial, Outcome]]:
        try:
            recipe = self.stages.build(trial.params)
        except EvomergeError as error:
            return trial, Outcome(f"{number:04d}-invalid", self.stages.built(trial.params), "failed", reason=str(error))
        name = f"{number:04d}-{recipe.key()[:8]}"
        seen = next((o for o in self.outcomes if o.name[5:] == name[5:] and o.state != "failed"), None)
        if seen is not None:
            return trial, replace(seen, name=name, arrivals=(), seconds={}, reason=f"same recipe as {seen.name}")
        return trial, (yield from live(name, recipe, self.arena))

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        """Folder first, then the sampler, then the line in the journal that makes the trial count."""
        self.record.write_scored(f"trials/{outcome.name}", outcome.recipe, outcome.scores, outcome.to_data())
        trial.set_user_attr("folder", outcome.name)
        trial.set_user_attr("state", outcome.state)
        if getattr(self.study.sampler, "wants_documents", False) and outcome.state != "failed":
            trial.set_user_attr("documents", self._answers(outcome))
        for name, value in outcome.constraints.items():
            trial.set_constraint(name, value)
        told = list(outcome.objectives.values()) or outcome.told
        ended = tell(self.study, trial, None if outcome.state == "failed" else told)
        self._told.append(ended)
        self.journal.append(ended)
        if self.copy is not None:
            self.copy.append(ended)
        self._write_clock()
        self.outcomes.append(outcome)
        self.watch.scored(outcome, self._best())

    def _answers(self, outcome: Outcome) -> list[float]:
        """Its scores on the targets' documents of the first rung, on which every trial has some."""
        first = {task: docs for task, docs in self.splits.rung(0).items() if task in self.experiment.suite.tasks}
        return [row.value for row in outcome.scores.select(first).rows]

    def _accepted(self) -> bool:
        """Whether a trial is shown to be better than the parent that `search.anytime` names: then no more are needed."""
        anytime, order, weights = self.arena.anytime, self.splits.search, self.experiment.suite.tasks
        for k in range(self._judged, len(self.outcomes) if anytime.accept else 0):
            outcome, self._judged = self.outcomes[k], k + 1
            usable = outcome.feasible and outcome.state == "survived"
            if usable and anytime.is_accepted(k + 1, outcome.scores, self.arena.parents, weights, order):
                self.record.write_json(ACCEPTED, {"trial": outcome.name, "said": anytime.said(outcome.name, k + 1)})
                self.watch.phase(f"accepted early: {outcome.name}", None)
                self._judged = k  # it stays accepted
                return True
        return False

    def _attribute(self) -> None:
        """What each delta is worth to the best trials, on search documents."""
        best = finalists(self.outcomes, self.experiment.search.attribution, len(self.splits.rungs) - 1)
        if not best or not self.experiment.search.attribution:
            return
        targets = self.experiment.suite.tasks
        documents = {task: docs for task, docs in self.splits.rung(len(self.splits.rungs) - 1).items() if task in targets}
        references = self.arena.references if self.experiment.suite.aggregate == "relative" else None
        self.watch.phase("attribution", None)
        judge = Judge(self.experiment, references)
        attribute(best, self.stages.layers, documents, judge, self.executor, self.record)

    def _refuse_endless_failure(self) -> None:
        last = self.outcomes[-FAILURES_IN_A_ROW:]
        if len(last) == FAILURES_IN_A_ROW and all(outcome.state == "failed" for outcome in last):
            raise StudyError(f"{self.record.directory}: {len(last)} trials in a row failed, the last with: {last[-1].reason}")

    def _stored(self, folder: str, name: str, recipe: Recipe) -> Outcome | None:
        """An outcome as it was written, and its arrivals noted in the race."""
        notes = self.record.read_json(f"{folder}/verdict.json")
        scores = self.record.read_scores(folder)
        if notes is None or scores is None:
            return None
        arrivals = tuple((Arrival(**arrival), Decision(**decision)) for arrival, decision in notes["arrivals"])
        for arrival, decision in arrivals:
            self.arena.race.restore(arrival, decision)
        if not notes["healed"]:
            recipe = replace(recipe, heal=None)
        noted = {key: notes[key] for key in ("state", "rung", "told", "constraints", "seconds", "reason")}
        estimate = self.arena.estimate(scores) if len(scores) else None
        known = {key: notes.get(key, {}) for key in ("distances", "objectives")}
        return Outcome(name, recipe, scores=scores, estimate=estimate, arrivals=arrivals, **known, **noted)

    def _best(self) -> float | None:
        values = [o.estimate.value for o in self.outcomes if o.feasible and o.state == "survived" and o.estimate]
        return max(values, default=None)

    def _time_left(self) -> bool:
        """Once sealed documents are open nothing more is tried, within the same limits."""
        opened = openings(self.record.directory)
        if opened and opened[-1].limits == self.experiment.search.limits():
            return False
        budget = self.experiment.search.budget
        return budget is None or self.clock.elapsed() + self._ending_takes() < budget

    def _ending_takes(self) -> float:
        """Seconds that selecting and certifying will take, from what a document cost lately."""
        return MARGIN * self._seconds_per_document() * self._documents_at_the_end() / self.executor.workers

    def _seconds_per_document(self) -> float:
        """Of the last trials; before any, of the fastest parent: the first ones also paid for reading the tasks."""
        if (lately := seconds_per_document(self.outcomes)) is not None:
            return lately
        notes = {name: self.record.read_json(f"baseline/{name}/verdict.json") for name in self.arena.parents}
        return min(_scoring(notes[name]["seconds"]) / len(scores) for name, scores in self.arena.parents.items())

    def _documents_at_the_end(self) -> int:
        select = sum(map(len, self.splits.select.values()))
        guarded = sum(len(docs) for task, docs in self.splits.sealed.items() if task in self.experiment.guard.tasks)
        targets = sum(map(len, self.splits.sealed.values())) - guarded
        parents, finalists = len(self.arena.parents), self.experiment.search.finalists
        rivals = len(contending(list(self.baselines.values())))
        # a winner and at most three rivals beside the parents; guards compare the winner with the base
        return select * (parents + rivals + finalists + 1) + targets * (parents + 4) + guarded * 2


def seconds_per_document(outcomes: Sequence[Outcome]) -> float | None:
    """What scoring a document took in the last trials; None where none was scored. A recipe seen before took nothing."""
    scored = [outcome for outcome in outcomes if outcome.seconds and outcome.documents][-LATELY:]
    if not scored:
        return None
    return sum(_scoring(outcome.seconds) for outcome in scored) / sum(outcome.documents for outcome in scored)


def _scoring(seconds: Mapping[str, float]) -> float:
    return sum(float(seconds.get(part, 0.0)) for part in ("score", "engine"))
