"""A study as one release of a line: the ledger that lies beside the base, what it holds the winner to, and what it gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.errors import GuardError
from evomerge.guards.criteria import Criterion, criteria
from evomerge.guards.ledger import Ledger, hold
from evomerge.guards.verdict import Verdict
from evomerge.recipe import locate
from evomerge.scoring.scores import Scores
from evomerge.scoring.suite import GuardConfig

FILE = "ledger.jsonl"


def ledger_beside(model: str | Path) -> Ledger | None:
    """The ledger that came with a model directory: in it, or beside the `model/` of a study. Raises GuardError where it was
    edited, or is not this model's."""
    path = locate(str(model))
    places = [path / FILE, *([path.parent / FILE] if path.name == "model" else [])]
    found = next((place for place in places if place.is_file()), None)
    return None if found is None else ledger_of(found, path)


def ledger_of(file: str | Path, parent: str | Path) -> Ledger:
    """A ledger whose line the parent belongs to, where the parent is a model directory. Raises GuardError."""
    ledger = Ledger.read(file)
    known = {release.model for release in ledger.releases}
    if Path(parent).is_dir() and known and Checkpoint.open(str(parent)).fingerprint not in known:
        raise GuardError(f"{file}: no release of {ledger.line!r} has the weights of {parent}; give the ledger of this line")
    return ledger


def refuse_broken_line(model: str | Path, guard: GuardConfig, catalogue: Callable[[], Mapping[str, Sequence[str]]]) -> None:
    """Raises GuardError where the ledger beside a base was edited, is of another line, or knows documents that are not asked."""
    if ledger := ledger_beside(model):
        refuse_unasked(ledger, guard, catalogue())


def refuse_unasked(ledger: Ledger, guard: GuardConfig, catalogue: Mapping[str, Sequence[str]]) -> None:
    """Raises GuardError where the line was held to documents that no model could be asked any more."""
    best = ledger.best
    for task in budgets(guard):
        if gone := set(best.get(task, {})) - set(catalogue[task]):
            raise GuardError(
                f"ledger of {ledger.line}: {len(gone)} of the {len(best[task])} documents of {task} that the line was held to are"
                " not in the task; restore its task file"
            )


def budgets(guard: GuardConfig) -> dict[str, float]:
    """The flip budget of each guard task that has one."""
    return {one.task: one.limit for one in criteria(guard) if one.measure == "flips"}


def steering(guard: GuardConfig, model: str | Path, ledger: Ledger | None) -> tuple[Criterion, ...]:
    """What a search over this base is held to while it runs: of each budget of flips what its line has left. Sealed documents say
    how much that is, as the base answered them when it was released; none of them is asked again."""
    lost = {} if ledger is None else spent(ledger, Checkpoint.open(locate(str(model))).fingerprint)
    return tuple(
        replace(one, limit=max(0.0, one.limit - lost.get(one.task, 0.0))) if one.measure == "flips" else one
        for one in criteria(guard)
    )


def spent(ledger: Ledger, model: str) -> dict[str, float]:
    """The share of the documents of each task on which the release of this fingerprint is worse than its line ever was."""
    best, own = ledger.best, next((r.answers for r in reversed(ledger.releases) if r.model == model), {})
    return {
        task: sum(value < best[task][document] for document, value in answers.items()) / len(answers)
        for task, answers in own.items()
        if answers
    }


def known_documents(ledger: Ledger, guard: GuardConfig, catalogue: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """The documents of the guard's budgeted tasks that the line was ever asked."""
    best = ledger.best
    known = {task: [doc for doc, found in enumerate(catalogue[task]) if found in best.get(task, {})] for task in budgets(guard)}
    return {task: docs for task, docs in known.items() if docs}


def held(ledger: Ledger, guard: GuardConfig, scores: Scores) -> dict[str, Verdict]:
    """The verdicts of the line, named apart from those of the parent; tasks that are new to it are not judged."""
    old = {task: budget for task, budget in budgets(guard).items() if task in ledger.best}
    return {f"{task} of the line": verdict for task, verdict in hold(ledger, scores, old).items()}
