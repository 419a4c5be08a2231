"""The same search over families of several seeds: what it gains, what it keeps, what racing saves. Tables for `results/`.

    python -m evomerge.zoo.studies search_spaces/quickstart.yaml --seeds 2 3 4 5 6 --trials 100 --out results/frozen

Each family is trained into OUT/seed-N/models. Over it run the space as it is, one weight per expert, and the same number of
trials without a race; the winners with and without a race are scored once more, on every document that steered nothing. With
--trials the searches end by number and not by the clock, so that a busy machine changes no figure. Every step that is there
already is kept: the command can be run again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.document import dump_yaml, read_yaml

from .findings import certificate, tables

MODELS = ("base", "sort", "flip", "rank")
VARIANTS = ("search", "one-weight", "no-race")
UNSEEN = 1998  # documents of each target that a winner is scored on again: all but two of its shortest task file


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--trials", type=int, help="trials of each search, instead of the space's own budget")
    asked = parser.parse_args(arguments)
    for seed in asked.seeds:
        train(asked.out / f"seed-{seed}/models", seed)
    for variant in asked.variants:
        for seed in asked.seeds:
            run(asked.space, asked.out / f"seed-{seed}", variant, asked.trials)
            if variant != "one-weight":
                score_again(asked.space, asked.out / f"seed-{seed}", variant)
    lines = tables(asked.out, asked.seeds, asked.variants)
    show(lines, asked.out)


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """What every instrument of this kind is asked; `doc` is its module's, whose first line and first command describe it."""
    about, command = (doc or "").split("\n")[0], re.search(r"python -m \S+", doc or "")
    parser = argparse.ArgumentParser(prog=command[0] if command else None, description=about)
    parser.add_argument("space", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="of the families")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def show(lines: Sequence[str], out: Path) -> None:
    """The lines on the screen, and in `table.md`."""
    text = "\n".join(lines) + "\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def train(models: Path, seed: int) -> None:
    """The untied family of a seed; nothing where it is there."""
    if missing := [name for name in MODELS if not (models / name / "training.json").exists()]:
        python("evomerge.zoo.train", "--seed", str(seed), "--out", str(models), "--jobs", "2", "--only", *missing)


def run(space: Path, family: Path, variant: str, trials: int | None = None) -> None:
    """One study; a finished one prints its table again and ends at once. Raises where it ended with a fault."""
    file = family / f"{variant}.yaml"
    file.write_text(dump_yaml(experiment(space, family, variant, trials)), encoding="utf-8")
    again = [] if variant == "search" else ["--reopen"]  # measured on the documents that the search was certified on
    python("evomerge.cli", "search", str(file), "--out", str(family / variant), "--resume", *again, ends=(0, 3, 4, 5))


def score_again(space: Path, family: Path, variant: str) -> None:
    """The winner, certified or refused, on all documents; a study without one has nothing to score."""
    study, rows = family / variant, family / f"{variant}-unseen.jsonl"
    found = [place for name in ("best", "refused") if (place := study / name / "model").is_dir()]
    if found and not rows.exists():
        file = family / "unseen.yaml"
        file.write_text(dump_yaml(every_document(space, family)), encoding="utf-8")
        python("evomerge.cli", "eval", str(found[0]), "--suite", str(file), "--split", "sealed", "--out", str(rows))


def experiment(space: Path, family: Path, variant: str, trials: int | None = None) -> dict[str, Any]:
    """The space over another family, and as a variant of itself."""
    data: dict[str, Any] = read_yaml(space)
    recipe, search = data["recipe"], data["search"]
    recipe["base"] = str((family / "models/base").resolve())
    recipe["sources"] = {name: str((family / "models" / name).resolve()) for name in recipe["sources"]}
    if variant == "no-race":
        search |= {"eta": 1, "heal_eta": 1, "baselines": False}
        trials = int(certificate(family / "search")["trials"])
    if trials:
        search["trials"] = trials
        search.pop("budget", None)
    if variant == "one-weight":
        weight = {name: {"range": [-0.1, 0.8], "start": [0.12, 0.33]} for name in recipe["sources"]}
        kept = {key: recipe[key] for key in ("base", "sources")}
        data["recipe"] = {**kept, "rules": [{"match": "*", "method": "task_arithmetic", "weight": weight}]}
    return data


def every_document(space: Path, family: Path) -> dict[str, Any]:
    """The targets alone, with all documents in one split; the suite's own are taken out again by `findings`."""
    data = experiment(space, family, "search")
    tasks = len(data["suite"]["tasks"])
    data["suite"] |= {"rungs": [tasks], "select": tasks, "sealed": UNSEEN * tasks}
    return {name: block for name, block in data.items() if name not in ("guard", "search")}


def python(module: str, *arguments: str, ends: Sequence[int] = (0,)) -> None:
    """A module of this package as a command of its own. Raises SystemExit where it ends otherwise than it may."""
    if (code := subprocess.run([sys.executable, "-m", module, *arguments]).returncode) not in ends:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
