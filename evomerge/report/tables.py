"""Figures as plain text: for a terminal, and the same for a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.guards.paired import Comparison, compare_tasks
from evomerge.scoring.scores import Scores


def align(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows as lines; the first `left` columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    rule = [":--" if i < left else "--:" for i in range(len(rows[0]))]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]


def scores_table(scores: Scores) -> str:
    """Mean and standard error of each task, with its number of documents."""
    rows = [["task", "mean", "± SE", "n"]]
    for task in scores.tasks:
        values = list(scores.values(task).values())
        mean = scores.mean(task)
        spread = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1) / len(values)) ** 0.5
        rows.append([task, f"{mean:.4f}", f"{spread:.4f}", str(len(values))])
    return "\n".join(align(rows))


def comparison_table(a: Scores, b: Scores) -> str:
    """A against B on the documents both were scored on, by task and on the plain mean of the tasks."""
    shared = {task: sorted(set(a.values(task)) & set(b.values(task))) for task in a.tasks}
    tasks = {task: docs for task, docs in shared.items() if len(docs) > 1}
    first, second = ({task: s.select({task: docs}).values(task) for task, docs in tasks.items()} for s in (a, b))
    whole = compare_tasks(first, second)
    rows = [["task", "A", "B", "A - B", "95 % interval", "lost", "won", "McNemar p", "n"]]
    rows += [_row(task, comparison) for task, comparison in whole.tasks.items()]
    rows.append(_row("mean of tasks", whole))
    return "\n".join(align(rows))


def _row(name: str, c: Comparison) -> list[str]:
    interval = f"[{c.low:+.4f}, {c.high:+.4f}]"
    flips = [str(c.negative_flips), str(c.positive_flips), f"{c.mcnemar_p:.3g}", str(c.n)]
    return [name, f"{c.candidate:.4f}", f"{c.reference:.4f}", f"{c.difference:+.4f}", interval, *flips]
