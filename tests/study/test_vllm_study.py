"""Whole studies in a live vLLM engine, from search to certificate, with healing and an extended context."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from evomerge.document import dump_yaml, parse_yaml
from evomerge.recipe import Recipe
from evomerge.scoring.scores import Scores
from evomerge.study.search import search
from evomerge.study.verbs import evaluate
from tests.scoring import engines  # noqa: F401 - skips where vLLM is not installed

SPACE = """
recipe:
  base: zoo:models/base
  sources: {sort: zoo:models/sort, flip: zoo:models/flip}
  rules:
    - match: "*"
      method: task_arithmetic
      weight: {sort: {range: [0.0, 0.8], start: 0.4}, flip: {range: [0.0, 0.8], start: 0.4}}
  context: {rope_type: yarn, beta_fast: 3, factor: {range: [1.0, 4.0], log: true, start: 1.75}}
  heal:
    tokens: 2000
    texts: zoo:tasks/data/heal.jsonl
    mixture: likelihood
    learning_rate: {range: [0.00003, 0.0003], log: true}
    teachers: {base: 0.5, flip: {range: [0.0, 1.0], start: 0.5}}
suite: {include: zoo:tasks, tasks: {zoo_sort: 1.0, zoo_flip: 1.0, zoo_sort_long: 1.0}, rungs: [12, 24], select: 24, sealed: 60}
guard: {tasks: {zoo_past: 0.3}, search: 24, select: 24, sealed: 60, discordance: 0.3}
scoring: {with: vllm}
search: {sampler: cmaes, trials: 6, seed: 0, eta: 2, heal_after: 0, finalists: 2, baselines: false}
"""


def write(folder: Path, text: str = SPACE, **scoring: object) -> Path:
    data = parse_yaml(text, "space.yaml")
    data["scoring"] = {**data["scoring"], **scoring}
    (folder / "space.yaml").write_text(dump_yaml(data))
    return folder / "space.yaml"


def trials(study: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in (study / "trials").glob("*/verdict.json")}


def certificate(study: Path) -> dict:
    return json.loads((study / "certificate.json").read_text())


def rows(scores: Scores) -> list[tuple]:
    return [(row.task, row.doc, row.hash, row.value, row.response) for row in scores.rows]


def margins(scores: Scores) -> list[float]:
    return [row.margin for row in scores.rows if row.margin is not None]


def test_a_study_goes_from_search_to_certificate_and_says_of_its_winner_what_transformers_says(tmp_path):
    study = tmp_path / "study"
    ending = search(write(tmp_path), study, workers=1)
    ended, found = trials(study), certificate(study)
    winner = Recipe.read(study / "best/recipe.yaml")

    assert ending == found["ending"] in (0, 3, 5)
    assert [note["state"] for note in ended.values() if note["state"] == "failed"] == []
    assert len(ended) == 6
    assert sum(note["healed"] for note in ended.values()) >= 1
    assert winner.heal is not None
    assert winner.context is not None
    assert found["winner"]["rows_that_differ_from_the_live_engine"] == []

    for split in ("select", "sealed"):
        ours = Scores.read(study / split / "winner.jsonl")
        theirs = evaluate(study / "best/model", write(tmp_path, **{"with": "hf"}), split_name=split)
        assert rows(ours) == rows(theirs)
        assert margins(ours) == pytest.approx(margins(theirs), abs=1e-4)


class Killer:
    """Watches a study and kills one of its workers, engine and all, when some trials have ended."""

    def __init__(self, after: int) -> None:
        self.left, self.counting, self.killed = after, False, 0

    def phase(self, name, total):
        self.counting = name == "trials"

    def scored(self, outcome, best):
        self.left -= self.counting
        if self.left == 0 and not self.killed:
            self.killed = multiprocessing.active_children()[0].pid
            os.kill(self.killed, signal.SIGKILL)

    def note(self, text): ...


def test_an_engine_killed_in_the_middle_costs_no_trial(tmp_path):
    study, killer = tmp_path / "study", Killer(after=2)
    search(write(tmp_path), study, workers=2, watch=killer)
    ended = trials(study)

    assert killer.killed
    assert len(ended) == 6
    assert {note["state"] for note in ended.values()} <= {"survived", "stopped"}
    assert certificate(study)["trials"] == 6
