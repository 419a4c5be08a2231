"""A line of releases: what each step is held to, who may follow, and what the last champion lost; worked by hand."""

import json
from pathlib import Path

import pytest

from evomerge.document import dump_yaml
from evomerge.guards.ledger import Ledger
from evomerge.scoring.scores import Row, Scores
from evomerge.study.experiment import Experiment
from evomerge.zoo.line import STEPS, VARIANTS, Line, copy, next_champion
from evomerge.zoo.releases import lost, moves, tables
from evomerge.zoo.skills import SKILLS

SPACE = Path(__file__).parents[2] / "search_spaces/line.yaml"


@pytest.mark.parametrize("step", range(1, len(STEPS) + 1))
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_arriving_skill_is_the_target_and_all_others_are_guarded(tmp_path, variant, step):
    line = Line(SPACE, tmp_path / "base", tmp_path / variant, 4, 9)
    (tmp_path / "x.yaml").write_text(dump_yaml(line.experiment(step, tmp_path / "champion", tmp_path / "expert")))

    found = Experiment.read(tmp_path / "x.yaml")

    skill = STEPS[step - 1]
    assert list(found.suite.tasks) == [f"zoo_{skill}"]
    assert set(found.guard.tasks) == (set() if variant == "free" else {f"zoo_{other}" for other in SKILLS if other != skill})
    assert found.suite.sealed == found.guard.sealed or variant == "free"
    assert found.space.build(found.space.start()).base.model == str(tmp_path / "champion")
    assert (found.search.seed, found.search.trials) == (4, 9)


def certificate(low, *outcomes):
    return {"comparisons": {"base": {"low": low}}, "guards": {str(i): {"outcome": o} for i, o in enumerate(outcomes)}}


@pytest.mark.parametrize(
    ("found", "follows"),
    [
        (certificate(0.01, "passed", "passed"), "best"),
        (certificate(-0.01, "passed"), None),
        (certificate(0.01, "passed", "undecided"), None),
        (certificate(0.01, "refused") | {"repair": certificate(0.01, "passed")}, "repaired"),
        (certificate(0.01, "refused") | {"repair": {"share": None}}, None),
        ({"ending": 3}, None),
    ],
)
def test_a_champion_follows_where_it_is_better_and_keeps_its_guards_beyond_doubt(tmp_path, found, follows):
    (tmp_path / "certificate.json").write_text(json.dumps(found))

    assert next_champion(tmp_path) == (tmp_path / follows / "model" if follows else None)


def test_a_ledger_travels_where_it_is_asked_for(tmp_path):
    (tmp_path / "best/model").mkdir(parents=True)
    Ledger("x").write(tmp_path / "best/ledger.jsonl")
    for kept in (True, False):
        copy(tmp_path / "best/model", tmp_path / "copy", ledger=kept)
        copy(tmp_path / "copy", tmp_path / "again", ledger=kept)

        assert [(tmp_path / name / "ledger.jsonl").exists() for name in ("copy", "again")] == [kept, kept]


def scores(**right):
    """So many of 100 documents right, of each skill, in this range."""
    return Scores.of(
        Row(f"zoo_{skill}", doc, f"{skill} {doc}", float(doc in kept)) for skill, kept in right.items() for doc in range(100)
    )


LINE = [
    scores(sort=range(50), past=range(90)),
    scores(sort=range(90), past=range(5, 90)),
    scores(sort=range(90), past=range(10, 92)),
    scores(sort=range(85), past=range(12, 92)),
]
RELEASES = [{"skill": "sort", "released": True}] * 3


def test_what_any_champion_had_counts_as_lost():
    found = lost(LINE, 0.08)

    assert found["zoo_past"].negative_flips == 12  # two since the last release, twelve since the base
    assert found["zoo_sort"].negative_flips == 5
    assert [task for task, verdict in found.items() if verdict.loss > verdict.tolerance] == ["zoo_past"]


def test_a_skill_is_learned_with_its_first_expert_and_one_without_an_expert_with_the_base():
    moved = moves(LINE, RELEASES)

    assert moved.forgetting == pytest.approx({"zoo_sort": 0.05, "zoo_past": 0.10})
    assert moved.backward == pytest.approx(-0.075)
    unreleased = moves(LINE, [{"skill": "sort", "released": False}] * 2 + RELEASES[2:])
    assert unreleased.forgetting == pytest.approx({"zoo_past": 0.10})  # sort came with the last release: nothing could follow


def test_the_table_tells_every_line(tmp_path):
    for variant, line in (("ledger", LINE[:2] * 2), ("parent", LINE)):
        for step, found in enumerate(line):
            (tmp_path / f"seed-2/{variant}/{step}").mkdir(parents=True)
            found.write(tmp_path / f"seed-2/{variant}/{step}/scores.jsonl")
            (tmp_path / f"seed-2/{variant}/{step}/release.json").write_text(json.dumps(RELEASES[step - 1]))
        guard = {"tasks": {"zoo_past": {"flips": 0.08}}}
        (tmp_path / f"seed-2/{variant}/all.yaml").write_text(dump_yaml({"guard": guard}))

    lines = tables(tmp_path, [2], ["ledger", "parent"], 3)

    assert lines[2].startswith("| 2 | ledger | 3 of 3 | past 5.0, sort 0.0 | none | 0 |")
    assert lines[3].startswith("| 2 | parent | 3 of 3 | past 12.0, sort 5.0 | past | 0 | -7.5 | 10.0 |")
    assert "ledger: 0 of 1 lines end beyond a budget, 0.0 skills a line" in lines
    assert "parent: 1 of 1 lines end beyond a budget, 1.0 skills a line" in lines
    assert lines[-1] == "| 2 | parent | 3 | 80.0 | 85.0 |"
