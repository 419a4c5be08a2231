"""A study read back from its folder, finished or not: what every table, figure and page is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.errors import StudyError
from evomerge.recipe import Recipe
from evomerge.scoring.scores import Scores
from evomerge.study.experiment import Experiment
from evomerge.study.proposer import FILE as SAMPLER
from evomerge.study.selection import ENDINGS


@dataclass(frozen=True)
class Ended:
    """A trial, parent or baseline as it was written."""

    name: str
    notes: dict[str, Any]

    @property
    def value(self) -> float | None:
        estimate = self.notes.get("estimate")
        return None if estimate is None else float(estimate["value"])

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.notes.get("constraints", {}).values())

    @property
    def standing(self) -> tuple[int, float] | None:
        """What survivors that keep their guards are ranked by, as in the search."""
        kept = self.notes["state"] == "survived" and self.feasible
        return (self.notes["rung"], self.value) if kept and self.value is not None else None


@dataclass(frozen=True)
class View:
    """The files of a study."""

    directory: Path

    @classmethod
    def of(cls, directory: Path) -> View:
        if not (directory / "study.json").exists():
            raise StudyError(f"{directory}: is not the folder of a study; give the --out of an `evomerge search`")
        return cls(directory)

    @cached_property
    def experiment(self) -> Experiment:
        return Experiment.read(self.directory / "experiment.yaml")

    @cached_property
    def certificate(self) -> dict[str, Any] | None:
        path = self.directory / "certificate.json"
        return json.loads(path.read_text()) if path.exists() else None

    @cached_property
    def trials(self) -> list[Ended]:
        return self._ended("trials")

    @cached_property
    def baselines(self) -> list[Ended]:
        return [ended for ended in self._ended("baseline") if ended.notes.get("state") != "parent"]

    @cached_property
    def parents(self) -> dict[str, Scores]:
        return {
            ended.name: self.scores(f"baseline/{ended.name}")
            for ended in self._ended("baseline")
            if ended.notes["state"] == "parent"
        }

    @property
    def best(self) -> Recipe | None:
        """The recipe that was chosen, refused or not."""
        paths = [self.directory / folder / "recipe.yaml" for folder in ("best", "refused")]
        return next((Recipe.read(path) for path in paths if path.exists()), None)

    @property
    def verdict(self) -> str:
        if self.certificate is None:
            return f"not finished: {len(self.trials)} trials so far"
        return ENDINGS[self.certificate["ending"]]

    @property
    def picked(self) -> str | None:
        """The sampler that `auto` picked, and why."""
        path = self.directory / SAMPLER
        found = json.loads(path.read_text()) if path.exists() else None
        return f"{found['name']}: {found['reason']}" if found else None

    @property
    def seconds(self) -> float:
        path = self.directory / "clock.json"
        return float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0

    def scores(self, folder: str) -> Scores:
        return Scores.read(self.directory / folder / "scores.jsonl")

    def _ended(self, kind: str) -> list[Ended]:
        paths = sorted((self.directory / kind).glob("*/verdict.json"), key=_order) if (self.directory / kind).exists() else []
        return [
            Ended(path.parent.name, json.loads(path.read_text())) for path in paths if not path.parent.name.endswith(".draft")
        ]


def _order(path: Path) -> tuple[int, str]:
    """Trials by their numbers, which may have five digits; all else by name."""
    name = path.parent.name
    number = name.partition("-")[0]
    return (int(number) if number.isdigit() else -1), name
