"""Models examined at the end of a study, on select or sealed documents: each once, and what an earlier run scored is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evomerge.errors import StudyError
from evomerge.recipe import Recipe
from evomerge.scoring.scores import Scores
from evomerge.study.executor import Executor, Job, Life
from evomerge.study.record import Record
from evomerge.study.watch import Watcher

T = TypeVar("T")


@dataclass(frozen=True)
class Exam:
    """Who scores, where the scores are kept, and who is told."""

    record: Record
    executor: Executor
    watch: Watcher

    def score(self, split: str, jobs: Mapping[str, Job]) -> dict[str, Scores]:
        """Scores by name, those that an earlier run wrote among them. Raises StudyError where a job fails: it ends the study."""
        known = {name: scores for name in jobs if (scores := self._known(split, name))}
        for name, result in self.executor.run(_once(name, job) for name, job in jobs.items() if name not in known):
            if result.error:
                raise StudyError(f"{name} on {split} documents: {result.error}")
            known[name] = result.scores
            path = self._path(split, name)
            path.parent.mkdir(exist_ok=True)
            result.scores.write(path)
            self.watch.note(f"{split}: {name}")
        return {name: known[name] for name in jobs}

    def save(self, name: str, recipe: Recipe, folder: str) -> None:
        """A recipe as a model directory in the study's folder. Raises StudyError where it cannot be written."""
        job = Job(recipe, {}, save=self.record.directory / folder / "model")
        _, result = next(self.executor.run(iter([_once(name, job)])))
        if result.error:
            raise StudyError(f"{name} cannot be written: {result.error}")

    def live(self, life: Life[T]) -> T:
        """What a life of several jobs comes to."""
        _, found = next(self.executor.run(iter([_named("", life)])))
        return found

    def _known(self, split: str, name: str) -> Scores | None:
        path = self._path(split, name)
        return Scores.read(path) if path.exists() else None

    def _path(self, split: str, name: str) -> Path:
        return self.record.directory / split / f"{name.replace('/', '_')}.jsonl"


def _named(name: str, life: Life[T]) -> Life[tuple[str, T]]:
    return name, (yield from life)


def _once(name: str, job: Job) -> Life[tuple[str, Any]]:
    return name, (yield job)
