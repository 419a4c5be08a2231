"""The arithmetic of the tables over several studies, worked by hand."""

import json

from evomerge.scoring.scores import Row, Scores
from evomerge.zoo.findings import documents_of_trials, gains, race, unseen_skill


def certified(folder, seed, winner, others, ending=0, more=()):
    study = folder / f"seed-{seed}/search"
    study.mkdir(parents=True)
    sealed = {name: {"mean_skill": mean} for name, mean in {**others, "winner": winner}.items()}
    verdict = {0: "better and certified", 3: "keep your parent"}[ending]
    found = {"ending": ending, "verdict": verdict, "sealed": sealed, "guards": {"zoo_past": {"loss": 0.012}}}
    (study / "certificate.json").write_text(json.dumps({**found, "trials": 98, "documents": 63762, **dict(more)}))


def ended(family, variant, right, documents):
    """A study whose winner has these documents right of two tasks with ten; 0-3 steered, 4 chose."""
    for number, count in enumerate(documents):
        folder = family / variant / f"trials/{number:04d}-abc"
        folder.mkdir(parents=True)
        (folder / "verdict.json").write_text(json.dumps({"documents": count}))
    steered = {"search": {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3]}, "select": {"a": [4], "b": [4]}}
    (family / variant / "splits.json").write_text(json.dumps(steered))
    rows = (Row(task, doc, "x", float(doc in hits)) for task, hits in right.items() for doc in range(10))
    Scores.of(rows).write(family / f"{variant}-unseen.jsonl")


def test_gains_are_against_the_best_plain_merge_and_nothing_certified_counts_as_none(tmp_path):
    certified(tmp_path, 2, 0.60, {"base": 0.42, "ties-0.2-0.3": 0.45, "base-healed": 0.57})
    certified(tmp_path, 3, 0.50, {"base": 0.45, "base-yarn": 0.52}, ending=3)
    lines = gains(tmp_path, [2, 3], ["search"])

    row = (
        "| 2 | search | better and certified | 60.0 | ties-0.2-0.3 45.0 | +15.0 | base-healed 57.0 | +3.0 | +1.2 | 98 | 63,762 |"
    )
    assert lines[2] == row
    assert "| +0.0 |" in lines[3]
    # gains 15 and 0: mean 7.5, standard error 7.5, t(1) = 12.706
    assert lines[-1] == "search: mean gain +7.5 points [-87.8, +102.8] over 2 seeds"


def test_a_baseline_that_won_is_no_gain_of_the_search(tmp_path):
    told = {"instead": "the winner is the baseline average: ...", "winner": {"name": "average"}}
    certified(tmp_path, 2, 0.60, {"base": 0.45}, more=told)

    lines = gains(tmp_path, [2], ["search"])

    assert "| average 60.0 | itself | +0.0 | itself | +0.0 |" in lines[2]
    assert lines[-1] == "search: mean gain +0.0 points, one seed"


def test_one_seed_has_no_interval(tmp_path):
    certified(tmp_path, 2, 0.60, {"base": 0.45})

    assert gains(tmp_path, [2], ["search"])[-1] == "search: mean gain +15.0 points, one seed"


def test_a_winner_is_judged_on_what_steered_nothing(tmp_path):
    ended(tmp_path, "search", {"a": {0, 1, 2, 3, 4, 5}, "b": {5, 6, 7, 8, 9}}, [1])

    assert unseen_skill(tmp_path, "search") == 100 * (1 / 5 + 5 / 5) / 2


def test_the_race_is_told_by_skill_and_by_the_documents_of_trials(tmp_path):
    family = tmp_path / "seed-2"
    ended(family, "search", {"a": {5, 6}, "b": {5, 6}}, [10, 30])
    ended(family, "no-race", {"a": {5, 6, 7}, "b": {5, 6}}, [100, 60])

    assert documents_of_trials(family / "search") == 40
    assert race(tmp_path, [2])[2] == "| 2 | 40.0 | 50.0 | -10.0 | 40 | 160 | 4.0 |"
    assert race(tmp_path, [2])[-1] == "race: median difference -10.0 points, 4.0 times fewer"


def test_a_study_without_a_winner_has_no_skill(tmp_path):
    assert unseen_skill(tmp_path, "search") != unseen_skill(tmp_path, "search")
