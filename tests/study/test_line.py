"""A line of releases over studies: the ledger travels with the winner, and the next model is held to all of it."""

import json
import shutil

import pytest

from evomerge.errors import GuardError
from evomerge.guards.ledger import Ledger
from evomerge.study.line import ledger_beside
from evomerge.study.search import search
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


def test_a_study_over_a_base_without_a_ledger_begins_a_line(released):
    search(released / "space.yaml", released / "study", workers=1)

    folder = next(path for path in (released / "study/best", released / "study/refused") if path.exists())
    assert [len(r.answers["kept"]) for r in Ledger.read(folder / "ledger.jsonl", "study").releases] == [120]
