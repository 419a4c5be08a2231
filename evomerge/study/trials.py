"""The trials of a study, one after another: asked, lived, told, and on disk before the sampler hears of the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.stack import Depths
from evomerge.errors import EvomergeError, StudyError
from evomerge.study.answers import answers_of
from evomerge.study.anytime import FILE as ACCEPTED
from evomerge.study.clock import Clock
from evomerge.study.executor import Executor, Life
from evomerge.study.experiment import Experiment
from evomerge.study.interrupts import uninterrupted
from evomerge.study.journal import Journal
from evomerge.study.memory import ask, create_study, params_of, tell
from evomerge.study.objectives import is_less_better
from evomerge.study.proposer import picked
from evomerge.study.record import Record
from evomerge.study.reserve import Reserve
from evomerge.study.stages import Stages
from evomerge.study.storage import Copy
from evomerge.study.stored import stored_outcome
from evomerge.study.trial import Arena, Outcome, live
from evomerge.study.watch import Watcher

if TYPE_CHECKING:
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial, Trial

FAILURES_IN_A_ROW = 20  # after so many the fault is not the candidates'


@dataclass
class Trials:
    """Everything between the baselines and the ending; `run` goes on where the journal ends."""

    arena: Arena
    record: Record
    executor: Executor
    watch: Watcher
    clock: Clock
    reserve: Reserve
    copy: Copy | None = None
    starts: Sequence[Mapping[str, Any]] = ()  # beginnings from earlier studies
    outcomes: list[Outcome] = field(default_factory=list)  # in the order in which they ended
    _told: list[FrozenTrial] = field(default_factory=list)  # the trials of `outcomes`
    _judged: int = 0  # outcomes that were looked at for early acceptance
    _recipes: dict[str, Outcome] = field(default_factory=dict)  # by the key in their names: the first that did not fail
    _best: tuple[int, float] | None = None  # the standing of who stands first

    def __post_init__(self) -> None:
        self.experiment: Experiment = self.arena.experiment
        base = self.experiment.space.build(self.experiment.space.start()).base.location
        layers, references = Depths(Checkpoint.open(base).tensors).layers, self.arena.references
        self.stages = Stages(self.experiment, self.record, layers, self.starts, references)

    def run(self) -> list[Outcome]:
        """Raises StudyError where many trials in a row fail, or what the journal names is not on disk."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = directions_of(self.experiment)
        self.journal: Journal = self.record.journal(directions)
        self.study: Study = create_study(directions, self.stages.sampler)
        if chosen := picked(self.experiment, self.record):
            self.watch.phase(f"auto picks {chosen}", None)
        self.watch.phase("trials", self.experiment.search.trials)
        self._replay()
        for trial, outcome in self.executor.run(self._proposals()):
            with self.clock.own(), uninterrupted():
                self._tell(trial, outcome)
            self._refuse_endless_failure()
        return self.outcomes

    def _replay(self) -> None:
        """Everything the journal holds, told again in its order: the sampler and the race stand where they stood."""
        if self.copy is not None:
            self.copy.begin(self.journal.directions, self.journal.trials())
        for trial in self.journal.trials():
            self.study.add_trial(trial)
            self._told.append(trial)
            outcome = self._read_trial(trial)
            self._keep(outcome)
        self.record.keep_trials({outcome.name for outcome in self.outcomes})

    def _read_trial(self, trial: FrozenTrial) -> Outcome:
        folder, recipe = trial.user_attrs["folder"], self.stages.built(trial.params)
        outcome = stored_outcome(self.record, self.arena, f"trials/{folder}", folder, recipe)
        if outcome is None:
            raise StudyError(
                f"{self.record.directory / 'trials' / folder}: is in the journal and not on disk; restore it, or begin anew"
            )
        return outcome

    def _proposals(self) -> Iterator[Life[tuple[Trial, Outcome]]]:
        proposed = len(self.outcomes)
        # numbers of what several workers had in hand when they were killed are not given again: a folder keeps its name
        number = 1 + max((int(outcome.name.split("-")[0]) for outcome in self.outcomes), default=-1)
        while (
            proposed < self.experiment.search.trials and self.reserve.is_left(self.clock, self.outcomes) and not self._accepted()
        ):
            proposed += 1
            with self.clock.own():
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
            recipe = self.stages.build(params_of(trial))
        except EvomergeError as error:
            return trial, Outcome(f"{number:04d}-invalid", self.stages.built(params_of(trial)), "failed", reason=str(error))
        key = recipe.key()[:8]
        name = f"{number:04d}-{key}"
        if (seen := self._recipes.get(key)) is not None:
            return trial, replace(seen, name=name, arrivals=(), seconds={}, reason=f"same recipe as {seen.name}")
        ceiling = self.experiment.search.ceiling(number, len(self.arena.splits.rungs))
        return trial, (yield from live(name, recipe, self.arena, ceiling=ceiling))

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        """Folder first, then the sampler, then the line in the journal that makes the trial count."""
        self.record.write_scored(f"trials/{outcome.name}", outcome.recipe, outcome.scores, outcome.to_data())
        trial.set_user_attr("folder", outcome.name)
        trial.set_user_attr("state", outcome.state)
        trial.set_user_attr("rung", outcome.rung)
        if getattr(self.study.sampler, "wants_documents", False) and outcome.state != "failed":
            trial.set_user_attr("documents", self._answers(outcome))
        if getattr(self.study.sampler, "wants_answers", False) and outcome.state != "failed":
            for name, answers in answers_of(outcome, self.arena).items():
                trial.set_user_attr(name, answers)
        for name, value in outcome.constraints.items():
            trial.set_constraint(name, value)
        told = list(outcome.objectives.values()) or outcome.told
        ended = tell(self.study, trial, None if outcome.state == "failed" else told)
        self._told.append(ended)
        self.journal.append(ended)
        if self.copy is not None:
            self.copy.append(ended)
        self.clock.tick()
        self._keep(outcome)

    def _keep(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if outcome.state != "failed":
            self._recipes.setdefault(outcome.name.partition("-")[2], outcome)
        if outcome.standing:
            self._best = max(self._best or outcome.standing, outcome.standing)
        self.watch.scored(outcome, self._best[1] if self._best else None)

    def _answers(self, outcome: Outcome) -> list[float]:
        """Its scores on the targets' documents of the first rung, on which every trial has some."""
        first = {task: docs for task, docs in self.arena.splits.rung(0).items() if task in self.experiment.suite.tasks}
        return [row.value for row in outcome.scores.select(first).rows]

    def _accepted(self) -> bool:
        """Whether a trial is shown to be better than the parent that `search.anytime` names: then no more are needed."""
        anytime, order, weights = self.arena.anytime, self.arena.splits.search, self.experiment.suite.tasks
        for k in range(self._judged, len(self.outcomes) if anytime.accept else 0):
            outcome, self._judged = self.outcomes[k], k + 1
            usable = outcome.feasible and outcome.state == "survived"
            if usable and anytime.is_accepted(k + 1, outcome.scores, self.arena.parents, weights, order):
                self.record.write_json(ACCEPTED, {"trial": outcome.name, "said": anytime.said(outcome.name, k + 1)})
                self.watch.phase(f"accepted early: {outcome.name}", None)
                self._judged = k  # it stays accepted
                return True
        return False

    def _refuse_endless_failure(self) -> None:
        last = self.outcomes[-FAILURES_IN_A_ROW:]
        if len(last) == FAILURES_IN_A_ROW and all(outcome.state == "failed" for outcome in last):
            raise StudyError(f"{self.record.directory}: {len(last)} trials in a row failed, the last with: {last[-1].reason}")


def directions_of(experiment: Experiment) -> list[StudyDirection]:
    """Up or down for each objective."""
    from optuna.study import StudyDirection

    search, suite, guard = experiment.search, experiment.suite, experiment.guard
    cost = [is_less_better(name, suite, guard) for name in search.objectives]
    return [StudyDirection.MINIMIZE if less else StudyDirection.MAXIMIZE for less in cost]
