"""What a sampler that foretells single documents is told of a trial: one number a document, in the order of the rungs."""

from __future__ import annotations

import math
from typing import Any

from evomerge.scoring.scores import Row, Scores
from evomerge.study.trial import Arena, Outcome

HALF = 0.5  # the margin of a document that has none


def answers_of(outcome: Outcome, arena: Arena) -> dict[str, Any]:
    """User attributes of the trial: the answers of each form that was scored, and which tasks are graded.

    A task whose scores are 0 or 1 is told as margins, above 0 where the score is 1; one that is graded in between as its scores.
    """
    forms = {"plain": outcome.unhealed} if outcome.unhealed else {}
    forms["healed" if outcome.recipe.heal else "plain"] = outcome.scores
    tasks = sorted(arena.experiment.suite.tasks)
    graded = [task for task in tasks if _is_graded(task, arena)]
    answers = {form: {task: _answers(scores, task, arena, task in graded) for task in tasks} for form, scores in forms.items()}
    return {"answers": answers, "graded": graded}


def _answers(scores: Scores, task: str, arena: Arena, graded: bool) -> list[float]:
    rows = scores.task(task)
    there = [rows[doc] for doc in arena.splits.search[task] if doc in rows]
    return [row.value if graded else _margin(row) for row in there]


def _margin(row: Row) -> float:
    """With four digits, which keep the sign."""
    size = HALF if row.margin is None or not math.isfinite(row.margin) else abs(row.margin)
    return float(f"{math.copysign(size, row.value - HALF):.4g}")


def _is_graded(task: str, arena: Arena) -> bool:
    """Whether a parent's score of a document lies between 0 and 1, or beyond them."""
    return any(value not in (0.0, 1.0) for scores in arena.parents.values() for value in scores.values(task).values())
