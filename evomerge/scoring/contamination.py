"""A guard that shares documents with what is searched on guards nothing: such documents are what the search improves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.errors import GuardError
from evomerge.scoring.suite import GuardConfig, Suite


def refuse_contamination(suite: Suite, guard: GuardConfig, contents: Mapping[str, Sequence[str]]) -> None:
    """Raises GuardError where a guard task has a document of a target task; `contents` has the hash of each, task left out."""
    targets = {content: task for task in suite.tasks for content in contents[task]}
    for task in guard.tasks:
        shared = [doc for doc, content in enumerate(contents[task]) if content in targets]
        if shared:
            raise GuardError(
                f"guard.tasks.{task}: {len(shared)} of its {len(contents[task])} documents are in suite.tasks."
                f"{targets[contents[task][shared[0]]]} too, the first is {shared[0]}; guard with documents of its own"
            )
