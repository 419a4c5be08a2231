"""The finished trials of a study, one durable line each, in a file that any of Optuna's tools reads."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import StudyError
from evomerge.study.interrupts import uninterrupted

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial


class Journal:
    """Finished trials in an Optuna journal file: one durable append each, readable by any Optuna tool."""

    NAME = "evomerge"

    def __init__(self, path: Path, directions: list[StudyDirection]) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        heal_torn_line(path)
        for lock in path.parent.glob(path.name + ".lock*"):
            lock.unlink()  # left by a killed process; the study's own lock is held by now
        self._storage = _storage_in(JournalFileBackend(str(path)))
        with uninterrupted():
            self._study: Study = optuna.create_study(
                storage=self._storage, study_name=self.NAME, directions=directions, load_if_exists=True
            )

    def append(self, trial: FrozenTrial) -> None:
        """`study.add_trial`, but for the checks that the study in memory has made when it was told."""
        with uninterrupted(), self._storage.unread():
            self._storage.create_new_trial(self._study._study_id, trial)

    @property
    def directions(self) -> list[StudyDirection]:
        return self._study.directions

    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def read_trials(directory: Path) -> list[FrozenTrial]:
    """The finished trials of a study that somebody else may hold; nothing is written. Raises StudyError where there is none."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    path = directory / "journal.log"
    if not path.exists():
        raise StudyError(f"{directory}: holds no study with trials; give the --out of an `evomerge search`")
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=Journal.NAME, storage=storage).get_trials(deepcopy=False)


def heal_torn_line(path: Path) -> None:
    """Cut a journal back to its last whole line: a torn one would swallow the next append."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
            os.fsync(file.fileno())


def _storage_in(backend: Any) -> Any:
    """Optuna's storage in a journal, without what it does again for every line.

    It can be kept from reading back the lines that it has written itself, and keeps the texts of distributions: they are the
    same in every trial, and at hundreds of dimensions take longer than all else in the line.
    """
    import optuna
    from optuna.distributions import distribution_to_json

    class Storage(optuna.storages.JournalStorage):
        reads, begun = True, False

        def __init__(self) -> None:
            self._texts: dict[int, tuple[BaseDistribution, str]] = {}  # by id, which is its own as long as it is kept here
            self._template: FrozenTrial | None = None
            super().__init__(backend)

        @contextmanager
        def unread(self) -> Iterator[None]:
            self.reads = not self.begun  # the first one it must have read
            try:
                yield
                self.begun = True
            finally:
                self.reads = True

        def _sync_with_backend(self) -> None:
            if self.reads:
                super()._sync_with_backend()

        def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
            bare, self._template = copy.copy(template_trial), template_trial
            if bare is not None:
                bare.distributions, bare.params = {}, {}
            return super().create_new_trial(study_id, bare)

        def _write_log(self, op_code: int, extra_fields: dict[str, Any]) -> None:
            if "distributions" in extra_fields and (trial := self._template):
                kinds = trial.distributions
                extra_fields["distributions"] = {name: self._text(kind) for name, kind in kinds.items()}
                extra_fields["params"] = {name: kinds[name].to_internal_repr(x) for name, x in trial.params.items()}
            super()._write_log(op_code, extra_fields)

        def _text(self, kind: BaseDistribution) -> str:
            if id(kind) not in self._texts:
                self._texts[id(kind)] = kind, distribution_to_json(kind)
            return self._texts[id(kind)][1]

    return Storage()
