"""Whole studies in a live vLLM engine, from search to certificate, with healing and an extended context."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest

from evomerge.document import dump_yaml, parse_yaml
from evomerge.recipe import Recipe
from evomerge.scoring.scores import Scores
from evomerge.study.search import search
from evomerge.study.verbs import evaluate
from tests.scoring import engines  # noqa: F401 - skips where vLLM is not installed

QUICKSTART = Path(__file__).parents[2] / "search_spaces/quickstart.yaml"
FEWER = {  # documents and trials than the quickstart has: minutes would be hours here
    "suite": {"rungs": [24, 48], "select": 48, "sealed": 96},
    "guard": {"tasks": {"zoo_past": 0.3}, "search": 24, "select": 24, "sealed": 60, "discordance": 0.3},
    "search": {"trials": 6, "eta": 2, "heal_after": 0, "finalists": 2, "budget": "1d"},
}
FEWEST = {"suite": {"tasks": {"zoo_sort": 1.0, "zoo_rank": 1.0}, "rungs": [12]}, "search": {"baselines": False, "finalists": 1}}


def write(folder: Path, *changes: dict, scorer: str = "vllm") -> Path:
    """The quickstart with some keys changed."""
    data = parse_yaml(QUICKSTART.read_text(), "quickstart.yaml")
    for change in (FEWER, *changes, {"scoring": {"with": scorer}}):
        data |= {block: {**data[block], **keys} for block, keys in change.items()}
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


def test_the_quickstart_goes_from_search_to_certificate_and_says_of_its_winner_what_transformers_says(tmp_path):
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
    assert re.fullmatch(r"vllm(-cpu)? \d+\.\d+.*", found["versions"]["vllm"])
    assert found["scoring"] == {"with": "vllm", "dtype": "float32", "device": "auto", "allow_code": False}

    for split in ("select", "sealed"):
        ours = Scores.read(study / split / "winner.jsonl")
        theirs = evaluate(study / "best/model", write(tmp_path, scorer="hf"), split_name=split)
        assert rows(ours) == rows(theirs)
        assert margins(ours) == pytest.approx(margins(theirs), abs=1e-4)


class Killer:
    """Watches a study and kills one of its processes when some trials have ended: a worker, engine and all, or a rank."""

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
    search(write(tmp_path, FEWEST), study, workers=2, watch=killer)
    ended = trials(study)

    assert killer.killed
    assert len(ended) == 6
    assert {note["state"] for note in ended.values()} <= {"survived", "stopped"}
    assert certificate(study)["trials"] == 6


def test_a_rank_killed_in_the_middle_costs_no_trial(tmp_path):
    study, killer = tmp_path / "study", Killer(after=2)
    path = write(tmp_path, FEWEST, {"search": {"trials": 4}})
    data = parse_yaml(path.read_text(), "space.yaml")
    data["scoring"]["engine"] = {"tensor_parallel_size": 2, "max_model_len": 1024}
    path.write_text(dump_yaml(data))
    search(path, study, workers=1, watch=killer)
    ended = trials(study)

    assert killer.killed
    assert len(ended) == 4
    assert {note["state"] for note in ended.values()} <= {"survived", "stopped"}
    assert certificate(study)["scoring"]["engine"]["tensor_parallel_size"] == 2
