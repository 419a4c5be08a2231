"""Studies in the laboratory that are stopped and go on, and what they left on disk."""

import json
from pathlib import Path

import optuna
import pytest

from evomerge.study.search import search
from evomerge.study.watch import Nobody


class StopAt(Nobody):
    """Stops a study, as Ctrl-C would, when a phase begins."""

    def __init__(self, phase: str) -> None:
        self.last = phase

    def phase(self, name: str, total: int | None) -> None:
        if name == self.last:
            raise KeyboardInterrupt


def stopped(laboratory: Path, at: str) -> Path:
    """The laboratory's study, stopped when a phase begins."""
    with pytest.raises(KeyboardInterrupt):
        search(laboratory / "space.yaml", laboratory / "study", workers=1, watch=StopAt(at))
    return laboratory / "study"


def parameters(study):
    """What was proposed, in order."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(study / "journal.log")))
    return [trial.params for trial in optuna.load_study(study_name=None, storage=storage).trials]


def ended(study):
    """How every trial ended: its place in the race is part of what a resumed study must know."""
    notes = {path.parent.name: json.loads(path.read_text()) for path in (study / "trials").glob("*/verdict.json")}
    return {name: (note["state"], note["rung"], note["told"]) for name, note in notes.items()}


def certificate(study):
    return json.loads((study / "certificate.json").read_text())


class Interrupt(Nobody):
    """Watches a study and stops it, as Ctrl-C would, after some trials."""

    def __init__(self, after):
        self.left, self.counting = after, False

    def phase(self, name, total):
        self.counting = name == "trials"

    def scored(self, outcome, best):
        self.left -= self.counting
        if not self.left:
            raise KeyboardInterrupt


def in_pieces(space: Path, study: Path, *after: int) -> None:
    """A study that is interrupted after so many trials, resumed, interrupted again, and at last brought to its end."""
    for count in after:
        with pytest.raises(KeyboardInterrupt):
            search(space, study, workers=1, resume=True, watch=Interrupt(count))
    search(space, study, workers=1, resume=True)
