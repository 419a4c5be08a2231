"""A line of releases over studies: the ledger travels with the winner, and the next model is held to all of it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.errors import GuardError
from evomerge.guards.ledger import Ledger
from evomerge.scoring.scores import Scores
from evomerge.study.line import ledger_beside, spent
from evomerge.study.search import search
from evomerge.study.trial import AIM
from evomerge.study.verbs import evaluate, guard, release
from tests.laboratory import change

LIMITS = {"tasks": {"kept": {"loss": 0.1, "flips": 0.1, "against": "best"}}}


@pytest.fixture
def released(laboratory):
    """The base, released with its scores on sealed documents."""
    change(laboratory, guard=LIMITS, search={"trials": 4})
    evaluate(laboratory / "base", laboratory / "space.yaml", split_name="sealed").write(laboratory / "base.jsonl")
    release(laboratory / "ledger.jsonl", "numbers", "one", laboratory / "base", laboratory / "base.jsonl")
    return laboratory


def test_a_model_is_held_to_its_line_where_a_ledger_is_given(released):
    space, ledger = released / "space.yaml", released / "ledger.jsonl"
    rule = "{match: '*', method: task_arithmetic, weight: {a: 20}}"
    (released / "far.yaml").write_text(f"{{base: {released}/base, sources: {{a: {released}/a}}, rules: [{rule}]}}")

    alike, far = (guard(model, released / "base", space, ledger=ledger) for model in (released / "base", released / "far.yaml"))

    assert list(alike.verdicts) == ["kept", "kept flips", "kept of the line"]
    assert (alike.outcome, far.outcome) == ("passed", "refused")
    assert far.verdicts["kept of the line"].outcome == "refused"
    with pytest.raises(GuardError, match=r"no release of 'numbers' has the weights of .*/a; give the ledger of this line"):
        guard(released / "base", released / "a", space, ledger=ledger)


def test_a_study_goes_on_with_the_line_of_its_base_and_its_winner_carries_it(released):
    shutil.copy(released / "ledger.jsonl", released / "base")

    search(released / "space.yaml", released / "study", workers=1)

    certificate = json.loads((released / "study/certificate.json").read_text())
    assert certificate["guards"]["kept of the line"]["n"] == 120
    folder = released / "study" / ("best" if certificate["ending"] != 4 else "refused")
    line = Ledger.read(folder / "ledger.jsonl", "numbers")
    assert line.releases[0].name == "one"
    assert line.releases[1].name == f"study {certificate['winner']['name']}"
    assert ledger_beside(folder / "model") == line


def test_a_search_is_held_to_what_the_line_has_left_of_its_budget(released):
    """Five of the 120 sealed documents that an older release had right were lost with the base: 5 of the 12 that may be."""
    base = Scores.read(released / "base.jsonl")
    own = Scores.of(replace(row, value=float(row.value and row.doc not in base.documents["kept"][:5])) for row in base.rows)
    fingerprint = Checkpoint.open(released / "base").fingerprint
    ledger = Ledger("numbers").add("zero", "another", base).add("one", fingerprint, own)
    ledger.write(released / "base/ledger.jsonl")

    search(released / "space.yaml", released / "study", workers=1)

    assert spent(ledger, fingerprint) == {"close": 0.0, "near": 0.0, "kept": 5 / 120}
    parent = Scores.read(released / "study/baseline/base/scores.jsonl").values("kept")
    folders = [path.parent for path in released.glob("study/trials/*/verdict.json")]
    assert len(folders) == 4
    for folder in folders:
        found = Scores.read(folder / "scores.jsonl").values("kept")
        flips = sum(value < parent[doc] for doc, value in found.items()) / len(found)
        constraints = json.loads((folder / "verdict.json").read_text())["constraints"]
        assert constraints["kept flips"] == pytest.approx(flips - AIM * (0.1 - 5 / 120))


def test_a_mended_model_is_held_to_the_line_too_and_carries_it(released):
    weights = load_file(released / "a/model.safetensors")
    save_file({**weights, "layers.0.kept": torch.full((2, 40), 0.5)}, released / "a/model.safetensors")
    change(released, guard={"search": 1, "select": 60, "repair": 120}, suite={"repair": 100, "seed": 10}, search={"trials": 8})
    evaluate(released / "base", released / "space.yaml", split_name="sealed").write(released / "base.jsonl")
    release(released / "base/ledger.jsonl", "mended", "one", released / "base", released / "base.jsonl")

    assert search(released / "space.yaml", released / "study", workers=1) == 4

    repair = json.loads((released / "study/certificate.json").read_text())["repair"]
    assert repair["guards"]["kept"]["n"] == repair["guards"]["kept of the line"]["n"] == 120
    line = Ledger.read(released / "study/repaired/ledger.jsonl", "mended")
    assert line.releases[-1].name == "study repaired"
    assert len(line.releases[-1].answers["kept"]) == 240  # those held back, and those that the line knew


def test_a_study_over_a_base_without_a_ledger_begins_a_line(released):
    search(released / "space.yaml", released / "study", workers=1)

    folder = next(path for path in (released / "study/best", released / "study/refused") if path.exists())
    assert [len(r.answers["kept"]) for r in Ledger.read(folder / "ledger.jsonl", "study").releases] == [120]
