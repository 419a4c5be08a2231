"""Find how to merge language models: search, score, guard, certify."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.recipe import Recipe
    from evomerge.study.search import search
    from evomerge.study.verbs import evaluate, guard, merge

__version__ = "0.1.0"
__all__ = ["Recipe", "__version__", "evaluate", "guard", "merge", "search"]

_HOMES = {
    "Recipe": "evomerge.recipe",
    "evaluate": "evomerge.study.verbs",
    "guard": "evomerge.study.verbs",
    "merge": "evomerge.study.verbs",
    "search": "evomerge.study.search",
}


def __getattr__(name: str) -> Any:
    """The public verbs, each imported when it is first asked for: `import evomerge` loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'evomerge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
