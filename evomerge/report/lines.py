"""A ledger as text: what each release of a line scored, and what the line kept."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.guards.ledger import Ledger, transfer_of
from evomerge.report.tables import align


def ledger_table(ledger: Ledger, learned: Mapping[str, str] | None = None) -> str:
    """A row a release, then transfer and forgetting in points of the mean score. Raises GuardError as `transfer_of` does."""
    tasks = sorted({task for release in ledger.releases for task in release.answers})
    rows = [["release", *tasks, "documents"]]
    for release in ledger.releases:
        means = [f"{100 * release.mean(task):.1f}" if task in release.answers else "" for task in tasks]
        rows.append([release.name, *means, str(sum(map(len, release.answers.values())))])
    found, best = transfer_of(ledger, learned), ledger.best
    lines = [f"line {ledger.line}", "", *align(rows), ""]
    lines += [f"the line ever passed: {sum(value > 0 for task in best.values() for value in task.values())} documents"]
    lines += [f"{name} transfer: {_points(value)}" for name, value in (("backward", found.backward), ("forward", found.forward))]
    lines += [
        f"forgotten of {task}: {100 * value:+.1f} since it was learned, {100 * found.worst[task]:+.1f} since its best release"
        for task, value in found.forgetting.items()
    ]
    return "\n".join(lines)


def _points(value: float) -> str:
    return "too few releases to tell" if value != value else f"{100 * value:+.1f}"
