"""The loop: parents, baselines, trials, and at the end one certified model; every step on disk before the next begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.scoring.suite import Splits
from evomerge.study.attribution import attribute
from evomerge.study.certify import Closing
from evomerge.study.clock import Clock
from evomerge.study.executor import Executor
from evomerge.study.experiment import Experiment
from evomerge.study.line import ledger_beside
from evomerge.study.race import Race
from evomerge.study.record import Record
from evomerge.study.reserve import Reserve
from evomerge.study.selection import Judge, finalists
from evomerge.study.storage import Copy
from evomerge.study.trial import Arena, Outcome
from evomerge.study.trials import Trials
from evomerge.study.watch import Watcher
from evomerge.study.yardsticks import Yardsticks


@dataclass
class Loop:
    """A running study."""

    experiment: Experiment
    record: Record
    splits: Splits
    clock: Clock
    hire: Callable[[], Executor]
    watch: Watcher
    copy: Copy | None = None
    reopen: bool = False
    starts: Sequence[Mapping[str, Any]] = ()  # beginnings from earlier studies

    def run(self) -> int:
        """The ending: 0, 3, 4 or 5."""
        self._write_header()
        base = self.experiment.space.build(self.experiment.space.start()).base.model
        race = Race(len(self.splits.rungs), self.experiment.search.eta)
        self.arena = Arena(self.experiment, self.splits, race, ledger=ledger_beside(base))
        self.executor = self.hire()
        try:
            baselines, outcomes = self._search()
            self.clock.write()
            certificate = self._close(baselines, outcomes)
            self.clock.write()
        finally:
            self.executor.close()
        return int(certificate["ending"])

    def _write_header(self) -> None:
        self.record.write("experiment.yaml", self.experiment.to_yaml())
        self.record.write_json("splits.json", {**self.splits.to_data(), "hash": self.splits.hash})

    def _search(self) -> tuple[dict[str, Outcome], list[Outcome]]:
        """How the baselines and the trials ended."""
        yardsticks = Yardsticks(self.arena, self.record, self.executor, self.watch)
        yardsticks.score_parents()
        baselines = yardsticks.score_baselines()
        reserve = Reserve(self.arena, self.record, baselines, self.executor.workers)
        trials = Trials(self.arena, self.record, self.executor, self.watch, self.clock, reserve, self.copy, self.starts)
        outcomes = trials.run()
        self.clock.write()
        self._attribute(outcomes, trials.stages.layers)
        return baselines, outcomes

    def _attribute(self, outcomes: Sequence[Outcome], layers: int) -> None:
        """What each delta is worth to the best trials, on search documents."""
        top = len(self.splits.rungs) - 1
        best = [o for o in finalists(outcomes, self.experiment.search.attribution) if o.rung == top]
        if not best or not self.experiment.search.attribution:
            return
        targets = self.experiment.suite.tasks
        documents = {task: docs for task, docs in self.splits.rung(top).items() if task in targets}
        references = self.arena.references if self.experiment.suite.aggregate == "relative" else None
        self.watch.phase("attribution", None)
        attribute(best, layers, documents, Judge(self.experiment, references), self.executor, self.record)

    def _close(self, baselines: Mapping[str, Outcome], outcomes: Sequence[Outcome]) -> dict[str, Any]:
        parents, watch = self.arena.parents, self.watch
        args = (self.experiment, self.record, self.splits, self.executor, parents, baselines, outcomes, watch, self.reopen)
        return Closing(*args).certify()
