"""The same search over families of several seeds: what it gains, what it keeps, what racing saves. A table for `results/`.

    python -m evomerge.zoo.studies search_spaces/quickstart.yaml --seeds 2 3 4 5 6 --out results/frozen

Each family is trained into OUT/seed-N/models. Over it run the space as it is, the same trials without a race, and one weight
per expert with the same budget. Every step that is there already is kept, so the command can be run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.document import dump_yaml, read_yaml
from evomerge.report.tables import markdown

MODELS = ("base", "sort", "flip", "rank")
CONTROLS = ("-yarn", "-ntk", "-linear", "-healed")  # baselines with more than a merge in them
VARIANTS = ("search", "no-race", "one-weight")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evomerge.zoo.studies", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("space", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    asked = parser.parse_args(arguments)
    for seed in asked.seeds:
        family = asked.out / f"seed-{seed}"
        train(family / "models", seed)
        for variant in asked.variants:
            run(asked.space, family, variant)
    lines = table(asked.out, asked.seeds, asked.variants)
    (asked.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")


def train(models: Path, seed: int) -> None:
    """The untied family of a seed; nothing where it is there."""
    missing = [name for name in MODELS if not (models / name / "training.json").exists()]
    if missing:
        command = [sys.executable, "-m", "evomerge.zoo.train", "--seed", str(seed), "--out", str(models), "--only", *missing]
        subprocess.run(command, check=True)


def run(space: Path, family: Path, variant: str) -> None:
    """One study; a finished one prints its table again and ends at once. Raises where it ended with a fault."""
    file = family / f"{variant}.yaml"
    file.write_text(dump_yaml(experiment(space, family, variant)), encoding="utf-8")
    command = [sys.executable, "-m", "evomerge.cli", "search", str(file), "--out", str(family / variant), "--resume"]
    if (code := subprocess.run(command).returncode) not in (0, 3, 4, 5):
        raise SystemExit(code)


def experiment(space: Path, family: Path, variant: str) -> dict[str, Any]:
    """The space over another family, and as a variant of itself."""
    data: dict[str, Any] = read_yaml(space)
    recipe = data["recipe"]
    recipe["base"] = str((family / "models/base").resolve())
    recipe["sources"] = {name: str((family / "models" / name).resolve()) for name in recipe["sources"]}
    if variant == "no-race":
        done = _certificate(family / "search")
        data["search"] |= {"eta": 1, "trials": done["trials"]}
        data["search"].pop("budget", None)
    if variant == "one-weight":
        weight = {name: {"range": [-0.1, 0.8], "start": 0.12} for name in recipe["sources"]}
        kept = {key: recipe[key] for key in ("base", "sources")}
        data["recipe"] = {**kept, "rules": [{"match": "*", "method": "task_arithmetic", "weight": weight}]}
    return data


def table(out: Path, seeds: Sequence[int], variants: Sequence[str]) -> list[str]:
    """A row a study: mean skill on sealed documents, in points, against the best plain merge or parent and against all rivals."""
    rows = [
        ["seed", "study", "ending", "winner", "best merge", "gain", "best rival", "gain", "guard loss", "trials", "documents"]
    ]
    gains: dict[str, list[float]] = {variant: [] for variant in variants}
    for seed in seeds:
        for variant in variants:
            found = _certificate(out / f"seed-{seed}" / variant)
            gain, cells = _row(found)
            gains[variant].append(gain)
            rows.append([str(seed), variant, *cells])
    return [*markdown(rows, left=2), "", *(f"{name}: {_summary(values)}" for name, values in gains.items())]


def _row(certificate: dict[str, Any]) -> tuple[float, list[str]]:
    """The gain over the best plain merge, 0 where nothing was certified, and the cells of the row."""
    sealed = certificate.get("sealed")
    counts = [str(certificate["trials"]), f"{certificate['documents']:,}"]
    if not sealed:
        return 0.0, [certificate["verdict"], "", "", "0", "", "", "", *counts]
    means = {name: 100 * entry["mean_skill"] for name, entry in sealed.items()}
    winner = means.pop("winner")
    merges = {name: mean for name, mean in means.items() if not name.endswith(CONTROLS)}
    best, rival = max(merges, key=lambda name: merges[name]), max(means, key=lambda name: means[name])
    losses = ", ".join(f"{100 * verdict['loss']:+.1f}" for verdict in certificate["guards"].values())
    gain = winner - merges[best] if certificate["ending"] == 0 else 0.0
    shown = [
        f"{winner:.1f}",
        f"{best} {merges[best]:.1f}",
        f"{gain:+.1f}",
        f"{rival} {means[rival]:.1f}",
        f"{winner - means[rival]:+.1f}",
    ]
    return gain, [certificate["verdict"], *shown, losses, *counts]


def _summary(gains: Sequence[float]) -> str:
    """Mean gain over the seeds with its interval by t."""
    from scipy.special import stdtrit

    mean = statistics.mean(gains)
    if len(gains) < 2:
        return f"mean gain {mean:+.1f} points, one seed"
    reach = float(stdtrit(len(gains) - 1, 0.975)) * statistics.stdev(gains) / len(gains) ** 0.5
    return f"mean gain {mean:+.1f} points [{mean - reach:+.1f}, {mean + reach:+.1f}] over {len(gains)} seeds"


def _certificate(study: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((study / "certificate.json").read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
