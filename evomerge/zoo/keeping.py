"""The same search with guards and without: which winner loses the guarded skill, and what keeping it cost.

    python -m evomerge.zoo.keeping search_spaces/guards.yaml --seeds 12 13 14 15 16 --search-seeds 0 1 --out results/keeping

Each family is trained into OUT/seed-N/models, or found in FAMILIES/seed-N/models. Over it run the space as it is and the same
without its guards, once for each seed of the search. Every winner, as it lies on disk, is then judged by the guards on their
sealed documents; without guards nothing of those was ever looked at. With --foretell the candidates of each unguarded search are
measured as well: how well elastic weights and KL foretell what they lose (see foretelling.py). Every step that is there already
is kept: the command can be run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.document import dump_yaml, read_yaml

from .foretelling import foretell
from .kept import tables
from .studies import parser_of, python, show, train

VARIANTS = ("guarded", "unguarded")
ENDS = (0, 3, 4, 5)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--search-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--trials", type=int, help="trials of each search, instead of the space's own")
    parser.add_argument("--families", type=Path, help="a folder with seed-N/models in it; OUT if not given")
    parser.add_argument("--foretell", type=int, default=0, metavar="N", help="candidates of each unguarded search to be measured")
    asked = parser.parse_args(arguments)
    studies = [
        Study(asked.space, (asked.families or asked.out) / f"seed-{seed}/models", asked.out / f"seed-{seed}", search_seed)
        for seed in asked.seeds
        for search_seed in asked.search_seeds
    ]
    for study in studies:
        run(study, asked.trials)
    for study in studies if asked.foretell else ():
        foretell(study.models, study.experiment("guarded"), study.folder("unguarded"), study.foretold, asked.foretell)
    lines = tables(asked.out, asked.seeds, asked.search_seeds)
    show(lines, asked.out)


class Study(NamedTuple):
    """One seed of the search over one family; its two variants lie beside each other."""

    space: Path
    models: Path
    family: Path
    seed: int

    def folder(self, variant: str) -> Path:
        return self.family / f"{variant}-{self.seed}"

    @property
    def foretold(self) -> Path:
        return self.family / f"foretold-{self.seed}.json"

    def experiment(self, variant: str, trials: int | None = None) -> dict[str, Any]:
        """The space over this family and from this seed, with its guards or without."""
        data: dict[str, Any] = read_yaml(self.space)
        recipe, search = data["recipe"], data["search"]
        recipe["base"] = str((self.models / "base").resolve())
        recipe["sources"] = {name: str((self.models / name).resolve()) for name in recipe["sources"]}
        search["seed"] = self.seed
        if trials:
            search["trials"] = trials
            search.pop("budget", None)
        return data if variant == "guarded" else {key: value for key, value in data.items() if key != "guard"}


def run(study: Study, trials: int | None) -> None:
    """Both variants, and the guards' verdict on the winner of each."""
    if not (study.models / "base/config.json").exists():
        train(study.models, int(study.family.name.removeprefix("seed-")))
    study.family.mkdir(parents=True, exist_ok=True)
    for variant in VARIANTS:
        folder = study.folder(variant)
        write(folder.with_suffix(".yaml"), study.experiment(variant, trials))
        told = (
            str(folder.with_suffix(".yaml")),
            "--out",
            str(folder),
            "--resume",
            "--reopen",
        )  # side by side they share documents
        python("evomerge.cli", "search", *told, ends=ENDS)
    for variant in VARIANTS:
        judge(study.folder(variant), study.models / "base", study.folder("guarded").with_suffix(".yaml"))


def judge(folder: Path, base: Path, suite: Path) -> None:
    """The guards' verdict on a study's winner, on sealed documents; a study that refused its choice has no winner."""
    model, verdict = folder / "best/model", Path(f"{folder}-verdict.json")
    if model.is_dir() and not verdict.exists():
        told = ("--against", str(base), "--suite", str(suite), "--out", str(verdict))
        python("evomerge.cli", "guard", str(model), *told, ends=(0, 4, 5))


def write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(dump_yaml(data), encoding="utf-8")


if __name__ == "__main__":
    main()
