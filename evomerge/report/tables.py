"""Figures as plain text: for a terminal, and the same for a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.guards.judgement import Distance, Flip, Judgement
from evomerge.guards.paired import Comparison, compare_tasks
from evomerge.guards.verdict import Verdict
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


SHOWN = 60  # characters of an answer


def judgement_table(judgement: Judgement, *, explain: bool = False) -> str:
    """Every guard's verdict and reason; with `explain`, the documents that flipped and both answers."""
    rows = [["guard", "outcome", "loss", "low", "high", "limit", "lost", "won", "flips below", "McNemar p", "n"]]
    rows += [_verdict(name, verdict) for name, verdict in judgement.verdicts.items()]
    lines = align(rows) if judgement.verdicts else []
    lines += ["", *(f"{name}: {' '.join(verdict.reasons)}" for name, verdict in judgement.verdicts.items())]
    if judgement.distances:
        lines += ["", *align([["moved", "", "nats", "limit"], *(_moved(*item) for item in judgement.distances.items())], left=2)]
    chance = {name: v for name, v in judgement.verdicts.items() if v.adjusted_flips is not None}
    lines += [f"{name}: flips to wrong without those of guessing {v.adjusted_flips:.4f}" for name, v in chance.items()]
    if explain:
        lines += ["", *align([["document", "", "parent", "answer", "model", "answer"], *map(_flip, judgement.flips)], left=6)]
    return "\n".join([*lines, "", f"verdict: {judgement.outcome} (exit {judgement.exit_code})"])


def _verdict(name: str, v: Verdict) -> list[str]:
    known = [f"{v.flip_bound:.4f}" if v.flip_bound is not None else "", f"{v.mcnemar_p:.3g}" if v.mcnemar_p is not None else ""]
    figures = [f"{value:+.4f}" for value in (v.loss, v.low, v.high)]
    return [name, v.outcome, *figures, f"{v.tolerance:.4f}", str(v.negative_flips), str(v.positive_flips), *known, str(v.n)]


def _moved(name: str, distance: Distance) -> list[str]:
    limit = "" if distance.limit is None else f"{distance.limit:.4g}"
    outcome = "" if distance.limit is None else "passed" if distance.kept else "refused"
    return [name, outcome, f"{distance.value:.4g}", limit]


def _flip(flip: Flip) -> list[str]:
    answers = [repr(answer)[:SHOWN] if answer is not None else "" for answer in (flip.parent_answer, flip.candidate_answer)]
    return [f"{flip.task} {flip.doc}", flip.kind, f"{flip.parent:g}", answers[0], f"{flip.candidate:g}", answers[1]]
