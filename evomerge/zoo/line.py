"""A line of releases: the champion becomes the base, an expert that was trained from it arrives, and a search merges the two.

    python -m evomerge.zoo.line search_spaces/line.yaml --seeds 12 13 14 15 16 --families results/keeping --out results/line

Five experts arrive, of sort, flip, rank, and sort and flip again. Each step's target is the skill that arrives, its guards are
all the others. The line runs three times: with the ledger, which holds each new champion to everything the line ever passed; with
the same guards against the last champion only; and without guards. A winner that keeps its guards beyond doubt and is better at
the target beyond doubt becomes the champion, and so does a repaired one; else the champion stays. Every step that is there
already is kept: the command can be run again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.document import dump_yaml, read_yaml
from evomerge.study.line import FILE
from evomerge.study.verbs import release

from .curriculum import ExpertRule, train_expert
from .releases import tables
from .skills import SKILLS, TARGETS
from .studies import parser_of, python, show, train
from .train import print_point, write_history

STEPS = (*TARGETS, *TARGETS[:2])  # the skills that arrive
VARIANTS = ("ledger", "parent", "free")
RULE = ExpertRule(goal=0.86, every=5, cap=140)  # 140 steps of 2,048 tokens: under a minute on one core


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=len(STEPS), choices=range(1, len(STEPS) + 1))
    parser.add_argument("--trials", type=int, help="trials of each search, instead of the space's own")
    parser.add_argument("--families", type=Path, help="a folder with seed-N/models in it; OUT if not given")
    asked = parser.parse_args(arguments)
    for seed in asked.seeds:
        models = (asked.families or asked.out) / f"seed-{seed}/models"
        if not (models / "base/config.json").exists():
            train(models, seed)
        for variant in asked.variants:
            line = Line(asked.space, models / "base", asked.out / f"seed-{seed}/{variant}", seed, asked.trials)
            line.run(asked.steps)
    lines = tables(asked.out, asked.seeds, asked.variants, asked.steps)
    show(lines, asked.out)


class Line(NamedTuple):
    """One line: champions in `0/model` (the base), `1/model`, ..., each with its scores on the sealed documents of all skills."""

    space: Path
    base: Path
    folder: Path
    seed: int
    trials: int | None

    @property
    def variant(self) -> str:
        return self.folder.name

    def run(self, steps: int) -> None:
        if not (self.folder / "0/scores.jsonl").exists():
            copy(self.base, self.folder / "0/model")
            self.score(0)
            if self.variant == "ledger":
                self.enter_base()
        for step in range(1, steps + 1):
            if not (self.folder / f"{step}/scores.jsonl").exists():
                self.step(step)

    def step(self, step: int) -> None:
        """An expert is trained from the champion, the two are merged, and the winner is the next champion if it may be."""
        here, skill = self.folder / str(step), STEPS[step - 1]
        here.mkdir(parents=True, exist_ok=True)
        if not (here / "expert/training.json").exists():
            arrive(self.folder / f"{step - 1}/model", skill, f"{self.seed} line {step} {skill}", here / "expert")
        space = self.write(step)
        python("evomerge.cli", "search", str(space), "--out", str(here / f"step-{step}"), "--resume", ends=(0, 3, 4, 5))
        champion = next_champion(here / f"step-{step}")
        copy(champion or self.folder / f"{step - 1}/model", here / "model", ledger=self.variant == "ledger")
        (here / "release.json").write_text(json.dumps({"skill": skill, "released": champion is not None}) + "\n")
        self.score(step)

    def write(self, step: int) -> Path:
        """The experiment of a step."""
        here = self.folder / str(step)
        data = self.experiment(step, self.folder / f"{step - 1}/model", here / "expert")
        (here / "space.yaml").write_text(dump_yaml(data), encoding="utf-8")
        return here / "space.yaml"

    def experiment(self, step: int, champion: Path, expert: Path) -> dict[str, Any]:
        """The space with the arriving skill as its target and all others as its guards; of step 0 as of the first, guarded."""
        data: dict[str, Any] = read_yaml(self.space)
        skill = STEPS[max(step - 1, 0)]
        bounds = next(iter(data["guard"]["tasks"].values()))
        data["recipe"] |= {"base": str(champion.resolve()), "sources": {"expert": str(expert.resolve())}}
        data["suite"]["tasks"] = {f"zoo_{skill}": 1.0}
        data["guard"]["tasks"] = {f"zoo_{other}": bounds for other in SKILLS if other != skill}
        data["search"]["seed"] = self.seed
        if self.trials:
            data["search"]["trials"] = self.trials
        return data if self.variant != "free" or not step else {key: value for key, value in data.items() if key != "guard"}

    def score(self, step: int) -> None:
        """The champion on the sealed documents of every skill; they are the same in every step."""
        here = self.folder / str(step)
        if step and not json.loads((here / "release.json").read_text(encoding="utf-8"))["released"]:
            shutil.copy(self.folder / f"{step - 1}/scores.jsonl", here / "scores.jsonl")
            return
        file = self.folder / "all.yaml"
        file.write_text(dump_yaml(self.experiment(0, self.base, self.base)), encoding="utf-8")
        told = ("--suite", str(file), "--split", "sealed", "--out", str(here / "scores.jsonl"))
        python("evomerge.cli", "eval", str(here / "model"), *told)

    def enter_base(self) -> None:
        """The base is the first release of its line."""
        here = self.folder / "0"
        (here / "model" / FILE).unlink(missing_ok=True)
        release(here / "model" / FILE, f"seed {self.seed}", "0", here / "model", here / "scores.jsonl")


def arrive(champion: Path, skill: str, seed: str, out: Path) -> None:
    """An expert of a skill, trained from the champion on nothing else."""
    import torch
    from transformers import LlamaForCausalLM

    from . import architecture

    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(champion, dtype=torch.float32)
    history = train_expert(model, skill, seed, RULE, 1.0, partial(print_point, f"[{seed}]"))
    architecture.save(model, out)
    write_history(history, out, int(seed.split()[0]))


def next_champion(study: Path) -> Path | None:
    """The winner, or else what was made of it, if it keeps every guard and beats the base, all beyond doubt."""
    found: dict[str, Any] = json.loads((study / "certificate.json").read_text(encoding="utf-8"))
    if _may_follow(found):
        return study / "best/model"
    return study / "repaired/model" if _may_follow(found.get("repair", {})) else None


def _may_follow(found: dict[str, Any]) -> bool:
    base = found.get("comparisons", {}).get("base")
    return base is not None and base["low"] > 0 and all(guard["outcome"] == "passed" for guard in found["guards"].values())


def copy(model: Path, to: Path, *, ledger: bool = False) -> None:
    """A model directory, with the ledger that lies in it or beside it, or without."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(model, to, ignore=shutil.ignore_patterns(FILE))
    kept = next((place for place in (model / FILE, model.parent / FILE) if place.is_file()), None)
    if ledger and kept is not None:
        shutil.copy(kept, to / FILE)


if __name__ == "__main__":
    main()
