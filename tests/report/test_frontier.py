"""What the guards cost, read back from a study's own trials."""

import json

import pytest

from evomerge.report.frontier import Frontier, Point, frontier_table, frontiers
from evomerge.report.view import View
from evomerge.report.write import write_report
from evomerge.study.search import search
from tests.laboratory import change


def test_the_frontier_is_the_best_value_at_each_loss_by_hand():
    trials = [
        Point(0.00, 0.40, "a", True),
        Point(0.01, 0.35, "b", True),  # loses more and is worse
        Point(0.03, 0.50, "c", True),
        Point(0.03, 0.45, "d", True),
        Point(0.10, 0.80, "e", False),
    ]

    frontier = Frontier("kept", 0.05, tuple(reversed(trials)))

    assert [point.name for point in frontier.points] == ["a", "c", "e"]
    assert frontier.cost == pytest.approx(0.30)
    assert Frontier("kept", 0.05, (trials[4],)).cost is None


def test_a_study_tells_what_its_guard_cost_on_every_page(laboratory):
    change(laboratory, search={"trials": 10, "eta": 1})
    search(laboratory / "space.yaml", laboratory / "study", workers=1)
    write_report(laboratory / "study")

    (frontier,) = frontiers(View.of(laboratory / "study"))
    notes = [json.loads(path.read_text()) for path in (laboratory / "study/trials").glob("*/verdict.json")]
    reached = [note for note in notes if note["rung"] == 1]
    assert len(frontier.trials) == len(reached) > 3
    assert max(p.value for p in frontier.trials) == max(note["estimate"]["value"] for note in reached)
    assert {round(p.loss - 0.05, 9) for p in frontier.trials} == {round(note["constraints"]["kept"], 9) for note in reached}
    rows = frontier_table(View.of(laboratory / "study"))
    assert rows[-1][0] == "kept: cost of keeping it"
    for file in ("report.html", "report.md"):
        text = (laboratory / "study" / file).read_text()
        assert "What the guards cost" in text
        assert rows[1][3] in text


def test_a_study_without_guards_has_no_frontier(laboratory):
    change(laboratory, search={"trials": 2}, guard={"tasks": {}})
    search(laboratory / "space.yaml", laboratory / "study", workers=1)

    assert frontier_table(View.of(laboratory / "study")) == []
    write_report(laboratory / "study")
    assert "What the guards cost" not in (laboratory / "study/report.html").read_text()
