"""What documents share with others, such as a passage that several questions are about: they are right or wrong together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.document import nearest
from evomerge.errors import GuardError
from evomerge.scoring.bound import Bound
from evomerge.scoring.suite import GuardConfig

Contexts = Mapping[str, Sequence[str | None]]  # {task: the context of every document}, of tasks that name one


def contexts_of(guard: GuardConfig, documents: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
    """The context of every document of the guard tasks whose bound names a field. Raises GuardError where none has the field."""
    named = {task: Bound.of(bound).clusters for task, bound in guard.tasks.items()}
    found = {task: [_context(doc, field) for doc in documents[task]] for task, field in named.items() if field}
    for task, contexts in found.items():
        if not any(contexts):
            known = sorted({str(key) for doc in documents[task] if isinstance(doc, Mapping) for key in doc})
            raise GuardError(f"guard.tasks.{task}.clusters: no document has {named[task]!r}{nearest(str(named[task]), known)}")
    return found


def _context(document: Any, field: str) -> str | None:
    """A digest of what a document says under `field`; None where it says nothing."""
    value = document.get(field) if isinstance(document, Mapping) else None
    if value is None:
        return None
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()[:16]
