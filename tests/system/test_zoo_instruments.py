"""The instruments that measure guards and the search, whole and on real models, with little to do: a minute or two."""

import json
from pathlib import Path

import pytest

from evomerge.document import dump_yaml, read_yaml
from evomerge.guards.ledger import Ledger
from evomerge.zoo import MODELS, keeping, line, rivals
from evomerge.zoo.curriculum import ExpertRule

SPACES = Path(__file__).parents[2] / "search_spaces"


@pytest.fixture
def families(tmp_path):
    """The family that ships with evomerge, as if it had been trained from seed 0."""
    (tmp_path / "families/seed-0").mkdir(parents=True)
    (tmp_path / "families/seed-0/models").symlink_to(MODELS)
    return tmp_path / "families"


def reduced(name, folder, bound, suite, guard):
    """A space with few documents and without baselines."""
    data = read_yaml(SPACES / name)
    data["suite"] |= suite
    data["guard"] = {"tasks": dict.fromkeys(data["guard"]["tasks"], bound), **guard}
    data["search"] |= {"trials": 3, "baselines": False, "repair": 2, "eta": 1}
    (folder / name).write_text(dump_yaml(data))
    return folder / name


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".safetensors", ".jsonl")}


def test_a_search_with_guards_and_without_is_judged_foretold_and_told(tmp_path, families):
    few = {"rungs": [9, 18], "select": 9, "sealed": 60}
    space = reduced("guards.yaml", tmp_path, 0.9, few, {"search": 18, "select": 18, "sealed": 60})
    told = [str(space), "--seeds", "0", "--search-seeds", "1", "--families", str(families), "--out", str(tmp_path / "out")]

    keeping.main([*told, "--foretell", "2"])

    table = (tmp_path / "out/table.md").read_text()
    assert "| 0 | 1 |" in table
    assert "given up for it" in table
    assert "rank correlation" in table
    family = tmp_path / "out/seed-0"
    assert json.loads((family / "unguarded-1-verdict.json").read_text())["guards"]["zoo_past"]["n"] == 60
    assert "guard" not in read_yaml(family / "unguarded-1/experiment.yaml")
    rows = json.loads((family / "foretold-1.json").read_text())
    assert len(rows) == 2
    assert all(row["ewc"] > 0 and row["kl"] > 0 for row in rows)
    before = files(family)
    keeping.main([*told, "--foretell", "2"])
    assert files(family) == before
    assert (tmp_path / "out/table.md").read_text() == table


def test_a_line_of_two_steps_is_run_scored_and_told(tmp_path, families, monkeypatch):
    monkeypatch.setattr(line, "RULE", ExpertRule(goal=0.86, every=5, cap=5))
    few = {"rungs": [6, 12], "select": 6, "sealed": 60, "repair": 30}
    space = reduced("line.yaml", tmp_path, {"flips": 0.2}, few, {"search": 12, "select": 12, "sealed": 60, "repair": 30})
    told = [str(space), "--seeds", "0", "--families", str(families), "--out", str(tmp_path / "out"), "--steps", "2"]

    line.main([*told, "--variants", "ledger"])

    here = tmp_path / "out/seed-0/ledger"
    assert read_yaml(here / "2/space.yaml")["suite"]["tasks"] == {"zoo_flip": 1.0}
    known = Ledger.read(here / "2/model/ledger.jsonl", "seed 0").releases
    released = [json.loads((here / f"{step}/release.json").read_text())["released"] for step in (1, 2)]
    assert len(known) == 1 + sum(released)
    assert "of the line" in (here / "1/step-1/certificate.json").read_text()
    assert "| 0 | ledger | 2 |" in (tmp_path / "out/table.md").read_text()


def test_two_rivals_search_equal_numbers_of_documents_and_are_asked_the_unseen_ones(tmp_path, families, monkeypatch):
    monkeypatch.setattr(rivals, "UNSEEN", 40)
    monkeypatch.setattr(rivals, "GROW", 4)
    data = read_yaml(SPACES / "quickstart.yaml")
    data["suite"]["rungs"] = [12, 48]
    (tmp_path / "space.yaml").write_text(dump_yaml(data))
    told = [str(tmp_path / "space.yaml"), "--seeds", "0", "--families", str(families), "--out", str(tmp_path / "out")]
    told += ["--rivals", "ours", "random", "--documents", "144"]

    rivals.main(told)

    here = tmp_path / "out/seed-0"
    spent = {name: sum(notes["documents"] for _, notes in rivals.ended(here / name)) for name in ("ours", "random")}
    assert spent == {"random": 144, "ours": 144}
    table = (tmp_path / "out/table.md").read_text()
    assert "| random |" in table
    before = files(here)
    rivals.main(told)
    assert files(here) == before
    assert (tmp_path / "out/table.md").read_text() == table
