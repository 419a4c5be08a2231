"""What a study leaves on disk, so that a run killed at any moment goes on where it stood.

A trial's folder is written first; its line in `journal.log` makes it count. A folder without a line never finished.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from evomerge.errors import StudyError
from evomerge.recipe import Recipe
from evomerge.scoring.scores import Scores
from evomerge.study.journal import Journal

if TYPE_CHECKING:
    from optuna.study import StudyDirection

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BEGUN = {"lock", "study.json.draft"}  # all that there is where a run was killed before it could say which study this is


class Record:
    """The folder of one study, held by one process."""

    def __init__(self, directory: Path, lock: TextIO) -> None:
        self.directory = directory
        self._lock = lock  # released when closed, or when the process ends, however it ends

    @classmethod
    def open(cls, directory: Path, identity: Mapping[str, str], *, resume: bool) -> Record:
        """Take the folder. Raises StudyError where it is taken, held by another process, or holds another study."""
        there = (directory / "study.json").exists()
        if directory.exists() and not there and {path.name for path in directory.iterdir()} - BEGUN:
            raise StudyError(f"{directory}: is not empty and holds no study; choose another --out")
        if there and not resume:
            raise StudyError(f"{directory}: holds a study already; add --resume to go on with it, or choose another --out")
        if there:
            _refuse_another(directory, identity)
        directory.mkdir(parents=True, exist_ok=True)
        record = cls(directory, _hold(directory))
        _remove_drafts(directory)
        if not there:
            record.write("study.json", json.dumps(dict(identity), indent=1) + "\n")
        return record

    def close(self) -> None:
        self._lock.close()

    # --- files, each written whole or not at all

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        return path

    def read(self, name: str) -> str | None:
        path = self.directory / name
        return path.read_text() if path.exists() else None

    def write_json(self, name: str, data: object) -> Path:
        return self.write(name, json.dumps(data, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        text = self.read(name)
        return None if text is None else json.loads(text)

    def write_scored(self, name: str, recipe: Recipe, scores: Scores, notes: Mapping[str, Any]) -> None:
        """A folder with a recipe, its scores and what was thought of them."""
        folder = self.directory / name
        if folder.exists():
            shutil.rmtree(folder)  # left by a run that was killed before it counted
        draft = folder.with_name(folder.name + ".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        (draft / "recipe.yaml").write_text(recipe.to_yaml())
        scores.write(draft / "scores.jsonl")
        (draft / "verdict.json").write_text(json.dumps(dict(notes), indent=1, ensure_ascii=False) + "\n")
        draft.rename(folder)

    def read_scores(self, name: str) -> Scores | None:
        path = self.directory / name / "scores.jsonl"
        return Scores.read(path) if path.exists() else None

    # --- trials

    def keep_trials(self, counted: set[str]) -> None:
        """Remove every other trial's folder: whoever wrote it was killed before it counted, and another may take its number."""
        for folder in self.directory.glob("trials/*"):
            if folder.name not in counted:
                shutil.rmtree(folder)

    def journal(self, directions: list[StudyDirection]) -> Journal:
        return Journal(self.directory / "journal.log", directions)


def write_atomically(path: Path, text: str) -> None:
    """The file holds the old text or the new one, whatever happens in between."""
    draft = path.with_name(path.name + ".draft")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


@contextmanager
def room_in(directory: Path) -> Iterator[None]:
    """Raises StudyError in place of the operating system's error where a file finds no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StudyError(
            f"{directory}: no room on disk ({error.strerror}); free some, then go on with the same command and --resume"
        ) from None


def _remove_drafts(directory: Path) -> None:
    """What a killed run was writing: nobody reads it, and it takes room."""
    for pattern in ("*.draft", "*/*.draft", "*/*.part"):
        for draft in directory.glob(pattern):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def _hold(directory: Path) -> TextIO:
    lock = open(directory / "lock", "a+", encoding="utf-8")  # noqa: SIM115 - held as long as the study is
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise StudyError(f"{directory}: process {holder} is working on this study; wait for it, or stop it first") from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _refuse_another(directory: Path, identity: Mapping[str, str]) -> None:
    stored = json.loads((directory / "study.json").read_text())
    changed = [name for name in {**stored, **identity} if stored.get(name) != identity.get(name)]
    if changed:
        raise StudyError(
            f"{directory}: this study was begun with another {', '.join(changed)}; "
            "only trials, budget and workers may change on --resume: choose another --out"
        )


@contextmanager
def held(record: Record) -> Iterator[Record]:
    try:
        yield record
    finally:
        record.close()
