"""Ours against what others do, at equal numbers of documents scored, over families of several seeds.

    python -m evomerge.zoo.rivals search_spaces/quickstart.yaml --families results/frozen --seeds 24 25 26 27 28 \\
        --documents 60000 --out results/rivals

All search the same numbers: the merge of the space, without distillation and longer contexts, without guards, on its short tasks.
Ours foretells margins from the space's own starts, on an eighth of the search documents at first and on more as it goes; `race`
is CMA-ES with a race, as in the space, and `ours-middle` is ours begun in the middle of every range. The others score every trial
on all search documents and begin where they begin by themselves: uniform points, Optuna's TPE and CMA-ES at their defaults, and
mergekit-evolve's scheme (CMA-ES around weights of 1/n, σ 1/6, a population of 4 + 3 ln n).
Whoever is best after so many documents, and after a fifth of them, is scored on every document that steered nothing. Each step
that is there already is kept: the command can be run again, or killed.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evomerge.document import dump_yaml, read_yaml
from evomerge.report.tables import markdown
from evomerge.scoring.scores import Scores
from evomerge.study.experiment import SearchConfig

from .findings import mean_and_interval
from .studies import UNSEEN, parser_of, python, show, train

RIVALS: dict[str, dict[str, Any]] = {
    "ours": {"sampler": "margins"},
    "ours-middle": {"sampler": "margins"},
    "race": {},
    "random": {"sampler": "random"},
    "tpe": {"sampler": "optuna.samplers:TPESampler"},
    "cmaes": {"sampler": "optuna.samplers:CmaEsSampler"},
    "mergekit-evolve": {"sampler": "cmaes"},
}
OURS = ("ours", "ours-middle")
OWN_STARTS = ("ours", "race")  # begin where the space does
FEWER = 5  # ours is also asked what it had after a fifth of the documents
ENDING = 20  # documents of each task for select and for sealed: each rival's certificate is nobody's concern here
SHARES, GROW = (8, 4, 2, 1), 24  # ours scores so many trials each on an eighth, a quarter and half, and the others on all
CHEAPEST = 4  # a trial of the race takes a quarter of the search documents on average, or more


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--families", type=Path, required=True, help="folder with seed-N/models; trained where they are missing")
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--rivals", nargs="+", choices=tuple(RIVALS), default=list(RIVALS))
    asked = parser.parse_args(arguments)
    found: dict[tuple[int, str], dict[str, float]] = {}
    for seed in asked.seeds:
        models = asked.families / f"seed-{seed}" / "models"
        if not (models / "base/config.json").exists():
            train(models, seed)
        for rival in asked.rivals:
            found[seed, rival] = run(asked.space, models, asked.out / f"seed-{seed}", rival, asked.documents)
    lines = table(found, asked.documents)
    show(lines, asked.out)


def run(space: Path, models: Path, out: Path, rival: str, documents: int) -> dict[str, float]:
    """Mean skill, in points, of who was best after a fifth of the documents and after all."""
    out.mkdir(parents=True, exist_ok=True)
    data = experiment(space, models, rival, documents)
    file, study = out / f"{rival}.yaml", out / rival
    file.write_text(dump_yaml(data), encoding="utf-8")
    python("evomerge.cli", "search", str(file), "--out", str(study), "--resume", "--reopen", ends=(0, 3, 5))
    return {name: unseen(study, data, out, best(study, limit)) for name, limit in marks(documents).items()}


def marks(documents: int) -> dict[str, int]:
    return {"a fifth": documents // FEWER, "all": documents}


def experiment(space: Path, models: Path, rival: str, documents: int) -> dict[str, Any]:
    """The space without what costs more than documents, as this rival would search it."""
    data: dict[str, Any] = read_yaml(space)
    recipe = data["recipe"]
    for extra in ("context", "heal"):
        recipe.pop(extra, None)
    data.pop("guard", None)
    recipe["base"] = str((models / "base").resolve())
    recipe["sources"] = {name: str((models / name).resolve()) for name in recipe["sources"]}
    suite = data["suite"]
    suite["tasks"] = {task: weight for task, weight in suite["tasks"].items() if not task.endswith("_long")}
    suite |= {"select": ENDING * len(suite["tasks"]), "sealed": ENDING * len(suite["tasks"])}
    search = {"sampler": "cmaes", "seed": data["search"].get("seed", 0), "baselines": False, "repair": 0}
    if rival == "race":
        search |= {"eta": data["search"].get("eta", 3.0), "trials": CHEAPEST * documents // suite["rungs"][-1]}
    else:
        suite["rungs"] = [suite["rungs"][-1] // share for share in (SHARES if rival in OURS else (1,))]
        search |= {"eta": 1, "grow": GROW if rival in OURS else 0, **RIVALS[rival]}
        search["trials"] = trials_within(documents, suite["rungs"], search["grow"])
    if rival not in OWN_STARTS:
        data["recipe"] = _begun(recipe, 1 / len(recipe["sources"]) if rival == "mergekit-evolve" else None)
    data["search"] = search
    return data


def trials_within(documents: int, rungs: Sequence[int], grow: int) -> int:
    """How many trials that many documents pay for."""
    growing = SearchConfig(grow=grow)
    spent = itertools.accumulate(rungs[growing.ceiling(number, len(rungs))] for number in itertools.count())
    return sum(1 for _ in itertools.takewhile(lambda documents_by_then: documents_by_then <= documents, spent))


def _begun(tree: Any, weight: float | None, inside: bool = False) -> Any:
    """The tree with starts taken out, those of the weights put at 1/n where a number is given."""
    if isinstance(tree, list):
        return [_begun(item, weight, inside) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "range" in tree:
        kept = {key: value for key, value in tree.items() if key != "start"}
        return {**kept, "start": weight} if inside and weight is not None else kept
    return {key: _begun(value, weight, inside or key == "weight") for key, value in tree.items()}


def best(study: Path, documents: int) -> Path:
    """The recipe that looked best after so many documents; parents, which are scored first, count."""
    spent = sum(len(Scores.read(path)) for path in study.glob("baseline/*/scores.jsonl"))
    found, top = study / "baseline/base/recipe.yaml", (-1, float("-inf"))
    for folder, notes in ended(study):
        spent += int(notes["documents"])
        if spent > documents:
            break
        value = (notes["rung"], notes["estimate"]["value"] if notes["estimate"] else float("-inf"))
        if notes["state"] == "survived" and value > top:
            found, top = folder / "recipe.yaml", value
    return found


def ended(study: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The trials in the order of their numbers; with one worker that in which they ended."""
    for folder in sorted(study.glob("trials/*"), key=lambda folder: int(folder.name.split("-")[0])):
        yield folder, json.loads((folder / "verdict.json").read_text(encoding="utf-8"))


def unseen(study: Path, data: dict[str, Any], out: Path, recipe: Path) -> float:
    """Mean skill of a recipe, in points, on all documents of the tasks but those that steered or chose in this study."""
    rows = out / "unseen" / f"{study.name}-{recipe.parent.name}.jsonl"
    if not rows.exists():
        tasks = len(data["suite"]["tasks"])
        every = {**data, "suite": {**data["suite"], "rungs": [tasks], "select": tasks, "sealed": UNSEEN * tasks}}
        file = out / "unseen.yaml"
        file.write_text(dump_yaml(every), encoding="utf-8")
        rows.parent.mkdir(exist_ok=True)
        python("evomerge.cli", "eval", str(recipe), "--suite", str(file), "--split", "sealed", "--out", str(rows))
    scores, splits = Scores.read(rows), json.loads((study / "splits.json").read_text(encoding="utf-8"))
    steered = {task: {*splits["search"][task], *splits["select"][task]} for task in scores.tasks}
    means = [statistics.mean(v for doc, v in scores.values(task).items() if doc not in steered[task]) for task in scores.tasks]
    return 100 * statistics.mean(means)


def table(found: dict[tuple[int, str], dict[str, float]], documents: int) -> list[str]:
    """A row a rival: its skill after all documents, and what ours has above it, after all and after a fifth."""
    seeds, rivals = sorted({seed for seed, _ in found}), list(dict.fromkeys(rival for _, rival in found))
    rows = [
        ["", *(f"seed {seed}" for seed in seeds), f"after {documents:,}", "ours, above it", f"ours after a {FEWER}th, above it"]
    ]
    for rival in rivals:
        values = [found[seed, rival]["all"] for seed in seeds]
        cells = [f"{value:.1f}" for value in values]
        gains = ["", ""]
        if "ours" in rivals:
            gains = [
                mean_and_interval([found[seed, "ours"][mark] - value for seed, value in zip(seeds, values, strict=True)])
                for mark in ("all", "a fifth")
            ]
        rows.append([rival, *cells, f"{statistics.mean(values):.1f}", *(gains if rival != "ours" else ["", gains[1]])])
    return markdown(rows)


if __name__ == "__main__":
    main()
