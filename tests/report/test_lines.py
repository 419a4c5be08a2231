"""A line of releases as its user sees it, and how a release is entered."""

import pytest
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.errors import GuardError
from evomerge.scoring.scores import Row, Scores


@pytest.fixture
def enter(laboratory):
    """Enters a model of the laboratory that has so many of 100 documents right."""

    def run(name, model, right):
        Scores.of(Row("kept", doc, f"h{doc}", float(doc in right)) for doc in range(100)).write(laboratory / "scores.jsonl")
        told = ["--enter", name, "--model", laboratory / model, "--scores", laboratory / "scores.jsonl", "--line", "numbers"]
        return CliRunner().invoke(app, ["ledger", str(laboratory / "ledger.jsonl"), *map(str, told)])

    return run


def test_releases_are_entered_one_after_the_other_and_shown_with_what_was_forgotten(enter):
    assert "too few releases to tell" in enter("one", "base", range(50)).stdout
    enter("two", "a", range(10, 90))

    shown = enter("three", "b", range(5, 80)).stdout

    assert shown.splitlines()[2:6] == [
        "release  kept  documents",
        "one      50.0        100",
        "two      80.0        100",
        "three    75.0        100",
    ]
    assert "the line ever passed: 90 documents" in shown
    assert "forgotten of kept: +5.0 since it was learned, +5.0 since its best release" in shown


def test_a_release_has_a_name_of_its_own_and_comes_with_model_and_scores(enter, laboratory):
    enter("one", "base", range(50))

    again = enter("one", "a", range(50)).exception
    assert isinstance(again, GuardError)
    assert "has a release 'one' already" in str(again)
    alone = CliRunner().invoke(app, ["ledger", str(laboratory / "ledger.jsonl"), "--enter", "two"])
    assert "add --model DIR and --scores FILE" in str(alone.exception)
