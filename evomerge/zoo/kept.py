"""Studies with guards and without as tables: what their winners keep, and what keeping it cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.document import read_yaml
from evomerge.guards.paired import Comparison, compare_tasks
from evomerge.report.tables import markdown
from evomerge.scoring.scores import Scores

from .findings import certificate, mean_and_interval
from .foretelling import correlations

HEADS = [
    "seed",
    "search",
    "guarded: ending",
    "loss",
    "verdict",
    "without: ending",
    "loss",
    "verdict",
    "target",
    "without",
    "given up",
]


class Winner(NamedTuple):
    """What a study offers, and what the guards say of it; no guards where it offers nothing."""

    ending: str
    guards: dict[str, Any]

    @property
    def loses(self) -> bool:
        """More than is allowed of some guard, as far as its sealed documents tell."""
        return any(guard["loss"] > guard["tolerance"] for guard in self.guards.values())

    @property
    def shown(self) -> bool:
        """Beyond doubt."""
        return any(guard["outcome"] == "refused" for guard in self.guards.values())

    @property
    def cells(self) -> list[str]:
        losses = (f"{100 * g['loss']:+.1f} ({100 * g['low']:+.1f} to {100 * g['high']:+.1f})" for g in self.guards.values())
        outcomes = (g["outcome"] for g in self.guards.values())
        return [self.ending, ", ".join(losses) or "-", ", ".join(outcomes) or "no winner"]


def tables(out: Path, seeds: Sequence[int], search_seeds: Sequence[int]) -> list[str]:
    """A row a study, then what they come to, then how well weights and KL foretold the losses, where that was measured."""
    rows, found, given_up = [HEADS], dict[str, list[Winner]](), dict[int, list[float]]()
    for seed in seeds:
        for search_seed in search_seeds:
            family = out / f"seed-{seed}"
            winners = {variant: winner(family / f"{variant}-{search_seed}") for variant in ("guarded", "unguarded")}
            for variant, one in winners.items():
                found.setdefault(variant, []).append(one)
            cost = cost_of_keeping(family, search_seed)
            given_up.setdefault(seed, []).append(cost.difference if cost else 0.0)
            cells = [cell for one in winners.values() for cell in one.cells]
            rows.append([str(seed), str(search_seed), *cells, *_points(cost)])
    summary = [f"{variant}: {_kept(winners)}" for variant, winners in found.items()]
    mean = mean_and_interval([100 * statistics.mean(costs) for costs in given_up.values()])
    lines = [*markdown(rows, left=2), "", *summary, f"given up for it: {mean} points of mean skill over {len(seeds)} families"]
    foretold = correlations(sorted(out.glob("seed-*/foretold-*.json")))
    return [*lines, "", *foretold] if foretold else lines


def winner(folder: Path) -> Winner:
    """The winner of a finished study. Loss and bounds are on sealed documents, each bound one-sided at 5 %."""
    verdict = Path(f"{folder}-verdict.json")
    guards = json.loads(verdict.read_text(encoding="utf-8"))["guards"] if verdict.exists() else {}
    return Winner(str(certificate(folder)["verdict"]), guards)


def cost_of_keeping(family: Path, search_seed: int) -> Comparison | None:
    """Mean skill on sealed documents: what the search without guards offers, less what the guarded one does; who is offered
    nothing keeps the base. None where both do."""
    studies = [family / f"{variant}-{search_seed}" for variant in ("unguarded", "guarded")]
    winners = [study / "sealed/winner.jsonl" if (study / "best/model").is_dir() else None for study in studies]
    if not any(winners):
        return None
    base = next(study / "sealed/base.jsonl" for study, winner in zip(studies, winners, strict=True) if winner)
    free, kept = (Scores.read(winner or base) for winner in winners)
    targets = read_yaml(studies[0] / "experiment.yaml")["suite"]["tasks"]
    return compare_tasks(*({task: scores.values(task) for task in targets} for scores in (free, kept)))


def _points(cost: Comparison | None) -> list[str]:
    if cost is None:
        return ["-", "-", "+0.0"]
    interval = f"{100 * cost.difference:+.1f} [{100 * cost.low:+.1f}, {100 * cost.high:+.1f}]"
    return [f"{100 * cost.reference:.1f}", f"{100 * cost.candidate:.1f}", interval]


def _kept(winners: Sequence[Winner]) -> str:
    offered = [one for one in winners if one.guards]
    lose, shown, without = sum(one.loses for one in offered), sum(one.shown for one in offered), len(winners) - len(offered)
    return f"{lose} of {len(winners)} winners lose more than is allowed, {shown} beyond doubt; {without} studies without one"
