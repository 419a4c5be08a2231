"""Sealed documents are opened once: who opened them and for which model, written down before the first of them is scored.

A figure on documents that were opened before is no first look: whoever searches on until a certificate comes out certifies luck
(best of 5 equals on 1,000 documents: 11 % false claims instead of 2.5). A second look is refused unless it is asked for, and then
the certificate says so. Studies that lie side by side in one folder know of each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import StudyError
from evomerge.scoring.suite import Splits
from evomerge.study.record import Record, write_atomically

FILE = "openings.json"
Limits = Mapping[str, float | None]


@dataclass(frozen=True)
class Opening:
    """One model that sealed documents were opened for."""

    name: str  # of the trial
    model: str  # fingerprint of what lay on disk
    trials: int  # that it was chosen from
    limits: Limits  # of the study at that time
    mends: bool = False  # the refused model of the opening before, mended: not another choice


def openings(study: Path) -> list[Opening]:
    """What a study's folder says of its openings, the first one first."""
    path = study / FILE
    return [Opening(**entry) for entry in json.loads(path.read_text())] if path.exists() else []


def looks(found: Sequence[Opening]) -> int:
    """How often documents were opened for a choice; a mended model is the same choice."""
    return sum(not opening.mends for opening in found)


def open_sealed(record: Record, opening: Opening, *, reopen: bool) -> None:
    """Write an opening down, durably. Raises StudyError on another model than the documents were opened for, unless forced."""
    before = openings(record.directory)
    others = [known for known in before if known.model != opening.model]
    if others == before and before and not opening.mends and not reopen:
        raise _second(record.directory, before)
    text = json.dumps([asdict(each) for each in (*others, opening)], indent=1)
    write_atomically(record.directory / FILE, text + "\n")
    _sync(record.directory)


def refuse_second_look(study: Path, identity: Mapping[str, str], splits: Splits, limits: Limits) -> None:
    """Raises StudyError where searching on, or at all, would end in a second look; a finished study is only read again."""
    if _finished(study, limits):
        return
    before = openings(study)
    if before and _json(study / "study.json") == identity:
        if before[-1].limits != limits:
            raise _second(study, before)
        return
    others = elsewhere(study, identity, splits)
    if foreign := [other for other in others if not other.same]:
        raise StudyError(
            f"{study}: {foreign[0]}, on the same base; judged on them again nothing is certain: give suite.seed or the tasks"
            " other documents, or add --reopen and the certificate will say so"
        )


@dataclass(frozen=True)
class Other:
    """Another study beside this one that opened some of its sealed documents."""

    study: str
    looks: int
    names: tuple[str, ...]
    documents: int  # of this study's
    sealed: int  # documents that this study has
    same: bool  # the same experiment in all that decides its outcome: begun anew, not tried another way

    def __str__(self) -> str:
        return f"{self.documents} of {self.sealed} sealed documents were opened by {self.study} for {', '.join(self.names)}"


def elsewhere(study: Path, identity: Mapping[str, str], splits: Splits) -> list[Other]:
    """Studies in the same folder that opened sealed documents of this one on the same base."""
    found = []
    for path in sorted(study.resolve().parent.glob(f"*/{FILE}")):
        other = path.parent
        theirs = _json(other / "study.json") or {}
        if other == study.resolve() or theirs.get("source base") != identity.get("source base"):
            continue
        before, common = openings(other), _common(splits, _json(other / "splits.json") or {})
        if common and looks(before):
            names = tuple(opening.name for opening in before if not opening.mends)
            sealed = sum(map(len, splits.sealed.values()))
            found.append(Other(str(study.parent / other.name), looks(before), names, common, sealed, theirs == identity))
    return found


def told_looks(record: Record, splits: Splits) -> dict[str, Any]:
    """For the certificate: the number of this look, and every look before it."""
    study = record.directory
    mine = [opening for opening in openings(study) if not opening.mends]
    others = elsewhere(study, record.read_json("study.json") or {}, splits) if mine else []
    earlier = [f"opened before for {opening.name}, chosen from {opening.trials} trials" for opening in mine[:-1]]
    return {
        "sealed_looks": len(mine) + sum(other.looks for other in others),
        "sealed_before": [*earlier, *map(str, others)],
    }


def _common(splits: Splits, other: Mapping[str, Any]) -> int:
    sealed = other.get("sealed", {})
    return sum(len({*docs} & {*sealed.get(task, [])}) for task, docs in splits.sealed.items())


def _second(study: Path, before: Sequence[Opening]) -> StudyError:
    last = next(opening for opening in reversed(before) if not opening.mends)
    return StudyError(
        f"{study}: its sealed documents were opened for {last.name}, chosen from {last.trials} trials; another choice would be"
        " judged on documents that have been seen: add --reopen and the certificate will say so, or begin a study with others"
    )


def _finished(study: Path, limits: Limits) -> bool:
    certificate = _json(study / "certificate.json")
    return certificate is not None and certificate.get("limits") == limits


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _sync(directory: Path) -> None:
    """The name of a file is as durable as the folder that holds it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
