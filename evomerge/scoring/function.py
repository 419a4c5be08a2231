"""The user's own scorer: `module:function` on plain tensors, for anything that is not a language model.

    scoring: {with: function, function: "mine:score", documents: "mine:documents"}

    def documents(task): ...                                  # the documents of a task, in order; anything that prints as JSON
    def score(weights, config, task, documents): ...          # one number for each of these document indices, more is better

The module is found beside the experiment file. `weights` maps names to tensors, `config` is the candidate's config.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from evomerge.document import nearest
from evomerge.errors import ScoringError, SuiteError
from evomerge.scoring.contexts import contexts_of
from evomerge.scoring.scores import Row, Scores
from evomerge.scoring.stopwatch import Stopwatch

if TYPE_CHECKING:
    from torch import Tensor

    from evomerge.candidate.stream import Candidate
    from evomerge.scoring import ScoringConfig
    from evomerge.scoring.suite import GuardConfig, Suite


class FunctionScorer:
    """Calls the user's function on a candidate's tensors."""

    def __init__(
        self,
        config: ScoringConfig,
        suite: Suite,
        guard: GuardConfig | None = None,
        *,
        model: Path | None = None,
        root: Path | None = None,
        module: Any = None,
    ) -> None:
        self.config, self.clock = config, Stopwatch()
        self.function = resolve(str(config.function), root, "scoring.function")
        documents = resolve(str(config.documents), root, "scoring.documents")
        names = [*suite.tasks, *(guard.tasks if guard else ())]
        found = {task: _documents(task, documents, str(config.documents)) for task in names}
        self.hashes = {task: [_hash([task, doc]) for doc in docs] for task, docs in found.items()}
        self._contexts = contexts_of(guard, found) if guard else {}
        self._contents = {task: [_hash(doc) for doc in docs] for task, docs in found.items()}
        source = inspect.getsourcefile(self.function)
        self._source = hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""
        self._weights: dict[str, Tensor] | None = None
        self._config: Mapping[str, Any] = {}

    def catalogue(self) -> dict[str, list[str]]:
        return {task: list(hashes) for task, hashes in self.hashes.items()}

    def check(self, documents: Mapping[str, Sequence[int]]) -> None:
        """What a document is, is the user's own affair."""

    def contents(self) -> dict[str, list[str]]:
        return {task: list(hashes) for task, hashes in self._contents.items()}

    def suite_fingerprint(self) -> str:
        content = json.dumps([self.hashes, self.config.function, self._source], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def load(self, candidate: Candidate) -> None:
        """Copies, for the stream may hand out the same memory again."""
        self._weights = {name: tensor.clone() for name, tensor in candidate.weights}
        self._config = candidate.config

    def score(self, documents: Mapping[str, Sequence[int]]) -> Scores:
        return Scores.of(row for task, docs in documents.items() if docs for row in self._rows(task, list(docs)))

    def _rows(self, task: str, docs: list[int]) -> list[Row]:
        if self._weights is None:
            raise ScoringError("scoring: no model is loaded yet; call load(candidate) first")
        if task not in self.hashes:
            raise ScoringError(f"{task}: not a task of this suite{nearest(task, tuple(self.hashes))}")
        if outside := [doc for doc in docs if not 0 <= doc < len(self.hashes[task])]:
            raise ScoringError(f"{task}: no document {outside[0]}; the task has {len(self.hashes[task])}")
        try:
            with self.clock("engine"):
                values = list(self.function(self._weights, self._config, task, docs))
        except Exception as error:
            line = " ".join(str(error).split())[:300]
            raise ScoringError(f"{self.config.function}: raised {type(error).__name__} on task {task!r}: {line}") from error
        if len(values) != len(docs):
            raise ScoringError(f"{self.config.function}: gave {len(values)} values for {len(docs)} documents of {task!r}")
        contexts = self._contexts.get(task)
        return [
            Row(task, doc, self.hashes[task][doc], self._number(value, task, doc), context=contexts[doc] if contexts else None)
            for doc, value in zip(docs, values, strict=True)
        ]

    def _number(self, value: Any, task: str, doc: int) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ScoringError(
                f"{self.config.function}: gave {value!r} for document {doc} of {task!r}; a finite number is needed"
            )
        return number

    def close(self) -> None:
        self._weights = None


def resolve(reference: str, root: Path | None, place: str) -> Callable[..., Any]:
    """The function behind `module:function`, with `root` first on the path while its module is imported."""
    module_name, _, name = reference.partition(":")
    sys.path.insert(0, str((root or Path.cwd()).resolve()))
    try:
        module = _import(module_name, (root or Path.cwd()).resolve())
    except Exception as error:
        where = f"{place}: {reference!r} cannot be imported from {sys.path[0]}"
        raise ScoringError(
            f"{where} ({type(error).__name__}: {error}); put {module_name}.py beside the experiment file"
        ) from error
    finally:
        sys.path.pop(0)
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        known = tuple(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ScoringError(f"{place}: {module.__file__} has no function {name!r}{nearest(name, known)}")
    return function


def _import(name: str, root: Path) -> ModuleType:
    """The file beside the experiment, whatever another experiment's module of that name left in this process; else a package."""
    path = root / f"{name}.py"
    if not path.is_file():
        importlib.invalidate_caches()
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _documents(task: str, documents: Callable[..., Any], reference: str) -> list[Any]:
    try:
        found = list(documents(task))
    except Exception as error:
        raise SuiteError(f"{reference}: raised {type(error).__name__} for task {task!r}: {error}") from error
    if not found:
        raise SuiteError(f"{reference}: task {task!r} has no documents")
    return found


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()
