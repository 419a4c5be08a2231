"""How well elastic weights and KL foretell what the candidates of a search lose of a guarded skill.

The candidates are those of a study, spread evenly over its trials, not random ones: what a guard must tell apart. Each is merged
again; its penalty under the Fisher of the base on texts of the guarded skill, its KL to the base on prompts of that skill and on
prompts of all skills are set beside what it loses on the guard's sealed documents.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.document import dump_yaml
from evomerge.recipe import Recipe, locate
from evomerge.report.tables import markdown
from evomerge.study.executor import Job
from evomerge.study.experiment import Experiment
from evomerge.study.lab import Lab, split_documents
from evomerge.study.record import write_atomically
from evomerge.study.verbs import estimate_fisher

TEXTS, ALL_PROMPTS = "zoo:tasks/data/heal.jsonl", "zoo:tasks/data/kl_prompts.jsonl"
ROWS, PROMPTS = 100, 24  # of the guarded skill: rows for its Fisher, and others on which KL is taken
MEASURES = ("ewc", "ewc per tensor", "kl", "kl p95", "kl of all skills")

Row = dict[str, Any]


def foretell(models: Path, data: Mapping[str, Any], study: Path, out: Path, count: int) -> None:
    """Measure `count` candidates of a study into `out`; nothing where it is there. `data` is the experiment with the guard."""
    if out.exists():
        return
    skill, folder = next(iter(data["guard"]["tasks"])).removeprefix("zoo_"), (out.parent / "fishers").resolve()
    prompts = _texts(skill, folder)
    for kind in ("parameter", "block"):
        if not (place := folder / kind / "base.safetensors").exists():
            estimate_fisher(models / "base", folder / "texts.jsonl", place, kind=kind)
    experiments = {
        "": {"kl_prompts": str(prompts), "ewc": {"fisher": str(folder / "parameter"), "weights": {"base": 0.0}}},
        "block": {"kl_prompts": ALL_PROMPTS, "ewc": {"fisher": str(folder / "block"), "weights": {"base": 0.0}}},
    }
    read = {name: _read(out.with_name(f"foretold{name}.yaml"), data, extra) for name, extra in experiments.items()}
    rows = list(_measured(read[""], read["block"], spread(sorted(study.glob("trials/*/recipe.yaml")), count)))
    write_atomically(out, json.dumps(rows, indent=1) + "\n")


def spread(recipes: Sequence[Path], count: int) -> list[Path]:
    """`count` of them, evenly over the search."""
    if len(recipes) <= count:
        return list(recipes)
    return [recipes[round(place * (len(recipes) - 1) / max(count - 1, 1))] for place in range(count)]


def _measured(whole: Experiment, block: Experiment, recipes: Sequence[Path]) -> Iterator[Row]:
    """A row a candidate: what it loses, and what was foretold."""
    task = next(iter(whole.guard.tasks))
    sealed = {task: split_documents(whole).sealed[task]}
    with closing(Lab(whole)) as lab, closing(Lab(block)) as again:
        base = lab.evaluate(Job(None, sealed, model=locate(lab.start.base.model))).scores.mean(task)
        for file in recipes:
            recipe = replace(Recipe.read(file), heal=None)
            found = lab.evaluate(Job(recipe, sealed, measure=True))
            other = again.evaluate(Job(recipe, {}, measure=True)).distances
            yield {
                "trial": file.parent.name,
                "loss": base - found.scores.mean(task),
                "ewc": found.distances["ewc base"],
                "ewc per tensor": other["ewc base"],
                "kl": found.distances["kl"],
                "kl p95": found.distances["kl p95"],
                "kl of all skills": other["kl"],
            }


def _texts(skill: str, folder: Path) -> Path:
    """Training texts of the skill for its Fisher, and other ones as prompts; returns where the prompts are."""
    lines = locate(TEXTS).read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if json.loads(line)["skill"] == skill][: ROWS + PROMPTS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.jsonl").write_text("\n".join(texts[:ROWS]) + "\n", encoding="utf-8")
    (folder / "prompts.jsonl").write_text("\n".join(texts[ROWS:]) + "\n", encoding="utf-8")
    return folder / "prompts.jsonl"


def _read(file: Path, data: Mapping[str, Any], extra: Mapping[str, Any]) -> Experiment:
    guard = {key: value for key, value in data["guard"].items() if key in ("tasks", "sealed", "select", "search")}
    file.write_text(dump_yaml({**data, "guard": {**guard, **extra}}), encoding="utf-8")
    return Experiment.read(file)


def correlations(files: Sequence[Path]) -> list[str]:
    """Spearman's rank correlation of each measure with the loss: a row a study, over all its candidates and over those that lose
    less than ten points, among which a guard has to decide."""
    if not files:
        return []
    rows = [["study", "candidates", *MEASURES, "losing < 10", *MEASURES]]
    found: list[list[float]] = []
    for file in files:
        candidates: list[Row] = json.loads(file.read_text(encoding="utf-8"))
        close = [row for row in candidates if row["loss"] < 0.1]
        whole, near = (list(spearman(some)) for some in (candidates, close))
        found.append([*whole, *near])
        shown = [*(f"{rho:.2f}" for rho in whole), str(len(close)), *(f"{rho:.2f}" for rho in near)]
        rows.append([f"{file.parent.name} {file.stem.split('-')[-1]}", str(len(candidates)), *shown])
    middle = [f"{_median(column):.2f}" for column in zip(*found, strict=True)]
    rows.append(["median", "", *middle[: len(MEASURES)], "", *middle[len(MEASURES) :]])
    return ["rank correlation with the loss on sealed guard documents", "", *markdown(rows)]


def spearman(candidates: Sequence[Row]) -> Iterator[float]:
    """Of each measure with the loss; nan of fewer than three candidates, or where all are alike."""
    from scipy.stats import rankdata

    for measure in MEASURES:
        ranks = [rankdata([row[key] for row in candidates]) for key in (measure, "loss")] if len(candidates) > 2 else [[0], [0]]
        try:
            yield statistics.correlation(*map(list, ranks))
        except statistics.StatisticsError:
            yield math.nan


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan
