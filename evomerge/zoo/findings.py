"""Studies of several families as tables: what a search gained and kept, and what racing saved."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.report.tables import markdown
from evomerge.scoring.scores import Scores

CONTROLS = ("-yarn", "-ntk", "-linear", "-healed")  # baselines with more than a merge in them


def tables(out: Path, seeds: Sequence[int], variants: Sequence[str]) -> list[str]:
    """The gains of every study, and beside them the race against no race, where both were run."""
    lines = gains(out, seeds, variants)
    return [*lines, "", *race(out, seeds)] if {"search", "no-race"} <= set(variants) else lines


def gains(out: Path, seeds: Sequence[int], variants: Sequence[str]) -> list[str]:
    """A row a study: mean skill on sealed documents, in points, against the best plain merge or parent and against all rivals."""
    heads = ["seed", "study", "ending", "winner", "best merge", "gain", "best rival", "gain", "guard loss", "trials", "documents"]
    rows, found = [heads], dict[str, list[float]]()
    for variant in (v for v in variants if v != "no-race"):  # it scores no baselines, so it has nobody to gain upon
        for seed in seeds:
            gain, cells = _row(certificate(out / f"seed-{seed}" / variant))
            found.setdefault(variant, []).append(gain)
            rows.append([str(seed), variant, *cells])
    return [*markdown(rows, left=2), "", *(f"{name}: {_summary(values)}" for name, values in found.items())]


def race(out: Path, seeds: Sequence[int]) -> list[str]:
    """A row a seed: both winners' mean skill on every document that steered neither, and the documents their trials took."""
    rows = [["seed", "race", "no race", "difference", "documents", "without", "times fewer"]]
    differences, ratios = [], []
    for seed in seeds:
        family = out / f"seed-{seed}"
        ours, theirs = (unseen_skill(family, variant) for variant in ("search", "no-race"))
        fewer, more = (documents_of_trials(family / variant) for variant in ("search", "no-race"))
        differences.append(ours - theirs)
        ratios.append(more / fewer)
        cells = [f"{ours:.1f}", f"{theirs:.1f}", f"{ours - theirs:+.1f}", f"{fewer:,}", f"{more:,}", f"{more / fewer:.1f}"]
        rows.append([str(seed), *cells])
    summary = f"race: median difference {statistics.median(differences):+.1f} points, {statistics.median(ratios):.1f} times fewer"
    return [*markdown(rows), "", summary]


def unseen_skill(family: Path, variant: str) -> float:
    """Mean skill of a study's winner, in points, on all documents but those that steered or chose; nan without a winner."""
    rows = family / f"{variant}-unseen.jsonl"
    if not rows.exists():
        return float("nan")
    scores, splits = Scores.read(rows), _read(family / variant / "splits.json")
    steered = {task: {*splits["search"][task], *splits["select"][task]} for task in scores.tasks}
    means = [
        statistics.mean(value for doc, value in scores.values(task).items() if doc not in steered[task]) for task in scores.tasks
    ]
    return 100 * statistics.mean(means)


def documents_of_trials(study: Path) -> int:
    """Documents scored for the trials of a study: parents, baselines, selection and certificate cost both alike."""
    return sum(int(_read(verdict)["documents"]) for verdict in sorted(study.glob("trials/*/verdict.json")))


def certificate(study: Path) -> dict[str, Any]:
    """What a finished study certified."""
    return _read(study / "certificate.json")


def _row(found: dict[str, Any]) -> tuple[float, list[str]]:
    """The gain over the best plain merge, 0 where nothing was certified or a baseline won, and the cells of the row."""
    sealed = found.get("sealed")
    counts = [str(found["trials"]), f"{found['documents']:,}"]
    if not sealed:
        return 0.0, [found["verdict"], "", "", "0", "", "", "", *counts]
    means = {name: 100 * entry["mean_skill"] for name, entry in sealed.items()}
    winner = means.pop("winner")
    merges = {name: mean for name, mean in means.items() if not name.endswith(CONTROLS)}
    best, rival = max(merges, key=lambda name: merges[name]), max(means, key=lambda name: means[name])
    losses = ", ".join(f"{100 * verdict['loss']:+.1f}" for verdict in found["guards"].values())
    if "instead" in found:  # a baseline, which nobody had to search for; on sealed documents the others were not scored
        return 0.0, [
            found["verdict"],
            f"{found['winner']['name']} {winner:.1f}",
            "itself",
            "+0.0",
            "itself",
            "+0.0",
            losses,
            *counts,
        ]
    gain = winner - merges[best] if found["ending"] == 0 else 0.0
    shown = [f"{winner:.1f}", f"{best} {merges[best]:.1f}", f"{gain:+.1f}", f"{rival} {means[rival]:.1f}"]
    return gain, [found["verdict"], *shown, f"{winner - means[rival]:+.1f}", losses, *counts]


def _summary(values: Sequence[float]) -> str:
    reach = f" over {len(values)} seeds" if len(values) > 1 else ", one seed"
    return f"mean gain {mean_and_interval(values, unit=' points')}{reach}"


def mean_and_interval(values: Sequence[float], unit: str = "") -> str:
    """The mean of a few seeds' gains, with its interval of 95 % by t; of one seed the gain alone."""
    from scipy.special import stdtrit

    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.1f}{unit}"
    reach = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.1f}{unit} [{mean - reach:+.1f}, {mean + reach:+.1f}]"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
