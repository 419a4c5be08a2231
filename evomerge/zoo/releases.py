"""Lines of releases as tables: what each champion knew, and what the last one lost of what its line ever passed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from evomerge.document import read_yaml
from evomerge.guards.ledger import Ledger, Transfer, hold, transfer
from evomerge.guards.verdict import Verdict
from evomerge.report.tables import markdown
from evomerge.scoring.bound import Bound
from evomerge.scoring.scores import Scores


def tables(out: Path, seeds: Sequence[int], variants: Sequence[str], steps: int) -> list[str]:
    """Of each line what was released and what its last champion lost; below, each champion's skills."""
    rows = [["seed", "line", "released", "lost of the line's best", "beyond budget", "refused", "backward", "worst forgetting"]]
    skills: list[list[str]] = []
    counts: dict[str, list[int]] = {variant: [] for variant in variants}
    for seed in seeds:
        for variant in variants:
            line = out / f"seed-{seed}/{variant}"
            scores = [Scores.read(line / f"{step}/scores.jsonl") for step in range(steps + 1)]
            releases = [json.loads((line / f"{step}/release.json").read_text(encoding="utf-8")) for step in range(1, steps + 1)]
            held, moved = lost(scores, _budget(line)), moves(scores, releases)
            over = [task for task, verdict in held.items() if verdict.loss > verdict.tolerance]
            counts[variant].append(len(over))
            rows.append([str(seed), variant, *_cells(releases, held, over, moved)])
            skills += [[str(seed), variant, str(step), *_means(found)] for step, found in enumerate(scores)]
    heads = ["seed", "line", "release", *scores[0].tasks]
    summary = [
        f"{variant}: {sum(map(bool, over))} of {len(over)} lines end beyond a budget, {statistics.mean(over):.1f} skills a line"
        for variant, over in counts.items()
    ]
    return [*markdown(rows, left=2), "", *summary, "", *markdown([heads, *skills], left=2)]


def lost(champions: Sequence[Scores], budget: float) -> dict[str, Verdict]:
    """The budget of flips on everything that any champion passed, of every skill, against the last champion."""
    line = Ledger("line")
    for step, scores in enumerate(champions):
        line = line.add(str(step), str(step), scores)
    return hold(line, champions[-1], dict.fromkeys(champions[-1].tasks, budget))


def moves(champions: Sequence[Scores], releases: Sequence[Mapping[str, object]]) -> Transfer:
    """Transfer over the line; a skill is learned when its first expert was released, with the base where no expert brought it."""
    learned = dict.fromkeys(champions[0].tasks, 0)
    for step, release in reversed(list(enumerate(releases, 1))):
        if release["released"]:
            learned[f"zoo_{release['skill']}"] = step
    return transfer({task: [scores.mean(task) for scores in champions] for task in learned}, learned)


def _budget(line: Path) -> float:
    """The budget of flips that the guards of the line had, or would have had."""
    bounds = [Bound(**bound) for bound in read_yaml(line / "all.yaml")["guard"]["tasks"].values()]
    return next(bound.flips for bound in bounds if bound.flips is not None)


def _cells(
    releases: Sequence[Mapping[str, object]], held: Mapping[str, Verdict], over: Sequence[str], moved: Transfer
) -> list[str]:
    shares = ", ".join(f"{task.removeprefix('zoo_')} {100 * verdict.loss:.1f}" for task, verdict in held.items())
    refused = sum(verdict.outcome == "refused" for verdict in held.values())
    worst = max(moved.worst.values(), default=0.0)
    released = f"{sum(bool(release['released']) for release in releases)} of {len(releases)}"
    names = ", ".join(task.removeprefix("zoo_") for task in over) or "none"
    return [released, shares, names, str(refused), f"{100 * moved.backward:+.1f}", f"{100 * worst:.1f}"]


def _means(scores: Scores) -> list[str]:
    return [f"{100 * mean:.1f}" for mean in scores.means().values()]
