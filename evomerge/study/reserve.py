"""How much of a study's time is kept for its ending: selecting and certifying, from what documents and healing cost lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from evomerge.study.attribution import PARTS, leave_one_out
from evomerge.study.clock import Clock
from evomerge.study.record import Record
from evomerge.study.sealed import openings
from evomerge.study.selection import contending
from evomerge.study.trial import Arena, Outcome

MARGIN = 1.3  # of the time that the ending is expected to take
FEWEST = 8  # trials that are begun as long as any time is left: an ending without one would certify nothing
LATELY = 10  # trials that say what a document takes now: a machine that was busy at the beginning may be so no more


@dataclass
class Reserve:
    """What the ending of a study will take."""

    arena: Arena
    record: Record
    baselines: Mapping[str, Outcome]
    workers: int

    def is_left(self, clock: Clock, outcomes: Sequence[Outcome]) -> bool:
        """Whether there is time for another trial; once sealed documents are open there is none, within the same limits."""
        search = self.arena.experiment.search
        opened = openings(self.record.directory)
        if opened and opened[-1].limits == search.limits():
            return False
        if search.budget is None:
            return True
        # the report imports about as much as the beginning did, and is written after all is certified
        kept = self.seconds(outcomes) + clock.preparing if len(outcomes) >= FEWEST else 0.0
        return clock.elapsed() + kept < search.budget

    def seconds(self, outcomes: Sequence[Outcome]) -> float:
        """Of selecting and certifying, by the wall."""
        healing = seconds_per_healing([*self.baselines.values(), *outcomes]) * self._healings()
        return MARGIN * (self._per_document(outcomes) * self._documents() + healing) / self.workers

    def _per_document(self, outcomes: Sequence[Outcome]) -> float:
        """Of the last trials and baselines; before any, of the fastest parent: the first ones also paid for reading the tasks."""
        splits = self.arena.splits
        most = sum(map(len, splits.rung(len(splits.rungs) - 1).values()))
        if (lately := seconds_per_document([*self.baselines.values(), *outcomes], most)) is not None:
            return lately
        parents = self.arena.parents
        notes = {name: self.record.read_json(f"baseline/{name}/verdict.json") for name in parents}
        return min(_scoring(notes[name]["seconds"]) / len(scores) for name, scores in parents.items())

    def _documents(self) -> int:
        splits, experiment = self.arena.splits, self.arena.experiment
        select = sum(map(len, splits.select.values()))
        guarded = sum(len(docs) for task, docs in splits.sealed.items() if task in experiment.guard.tasks)
        targets = sum(map(len, splits.sealed.values())) - guarded
        parents, finalists = len(self.arena.parents), experiment.search.finalists
        rivals = len(self._rivals)
        # a winner and at most three rivals beside the parents; guards compare the winner with the base
        return select * (parents + rivals + finalists + 1) + targets * (parents + 4) + guarded * 2 + self._attributed()

    def _attributed(self) -> int:
        """Documents of the finalists that are scored again without each delta."""
        experiment, splits = self.arena.experiment, self.arena.splits
        top = splits.rung(len(splits.rungs) - 1)
        each = sum(len(docs) for task, docs in top.items() if task in experiment.suite.tasks)
        deltas = leave_one_out(experiment.space.build(experiment.space.start()), len(PARTS))
        return experiment.search.attribution * len(deltas) * each

    def _healings(self) -> int:
        """The finalists and the baselines are healed anew for select; the winner once more to be saved, a rival for sealed."""
        healed = sum(outcome.recipe.heal is not None for outcome in self._rivals)
        return self.arena.experiment.search.finalists + healed + 2

    @cached_property
    def _rivals(self) -> list[Outcome]:
        return contending(list(self.baselines.values()))


def seconds_per_healing(outcomes: Sequence[Outcome]) -> float:
    """What healing a recipe took lately; 0 where none was healed."""
    healed = [outcome.seconds["heal"] for outcome in outcomes if outcome.seconds.get("heal")][-LATELY:]
    return sum(healed) / len(healed) if healed else 0.0


def seconds_per_document(outcomes: Sequence[Outcome], most: int) -> float | None:
    """What scoring a document took in the last trials that were scored on at least half of the `most` documents of a search.

    None where there was no such trial. Where only a first rung is scored each document costs several times what it costs among
    many, as at the end; a recipe seen before took nothing.
    """
    scored = [outcome for outcome in outcomes if outcome.seconds and 2 * outcome.documents >= most][-LATELY:]
    if not scored:
        return None
    return sum(_scoring(outcome.seconds) for outcome in scored) / sum(outcome.documents for outcome in scored)


def _scoring(seconds: Mapping[str, float]) -> float:
    return sum(float(seconds.get(part, 0.0)) for part in ("score", "engine"))
