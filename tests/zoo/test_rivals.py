"""What each rival searches, who was best after so many documents, and the table."""

import json

import pytest

from evomerge.document import Place, dump_yaml, read_yaml
from evomerge.scoring.scores import Row, Scores
from evomerge.space import Space
from evomerge.study.experiment import Experiment
from evomerge.zoo.rivals import RIVALS, best, experiment, table, trials_within

SPACE = "search_spaces/quickstart.yaml"


@pytest.mark.parametrize("rival", RIVALS)
def test_all_search_the_same_numbers_and_only_one_races(rival, tmp_path):
    from evomerge.recipe import locate

    data = experiment(SPACE, locate("zoo:models"), rival, documents=8_640)
    (tmp_path / "space.yaml").write_text(dump_yaml(data))
    found = Experiment.read(tmp_path / "space.yaml")

    assert [p.name for p in found.space.parameters] == [
        p.name for p in Experiment.read(SPACE).space.parameters if p.name.startswith("rules")
    ]
    assert list(found.suite.tasks) == ["zoo_sort", "zoo_flip", "zoo_rank"]
    assert (found.search.eta > 1, len(found.suite.rungs)) == {
        "race": (True, 3),
        "ours": (False, 4),
        "ours-middle": (False, 4),
    }.get(rival, (False, 1))
    assert (found.suite.rungs[-1], found.search.trials) == {"ours": (864, 50), "ours-middle": (864, 50), "race": (864, 40)}.get(
        rival, (864, 10)
    )
    starts = {p.name: p.starts for p in found.space.parameters}
    weights = {start for name, start in starts.items() if ".weight." in name}
    own = {(0.12, 0.33)}
    assert weights == {"ours": own, "race": own, "mergekit-evolve": {(1 / 3,)}}.get(rival, {((0.8 - 0.1) / 2,)})


def test_so_many_trials_are_paid_for():
    assert [trials_within(n, [10, 20, 40], grow=2) for n in (9, 10, 20, 59, 60, 100, 140)] == [0, 1, 2, 3, 4, 5, 6]
    assert trials_within(100, [30], grow=0) == 3


def trial(study, number, documents, value, state="survived", rung=0):
    folder = study / "trials" / f"{number:04d}-x"
    folder.mkdir(parents=True)
    notes = {"documents": documents, "estimate": {"value": value} if value is not None else None, "state": state, "rung": rung}
    (folder / "verdict.json").write_text(json.dumps(notes))
    return folder / "recipe.yaml"


def test_the_best_is_that_of_the_documents_spent_and_parents_are_paid_for(tmp_path):
    (tmp_path / "baseline/base").mkdir(parents=True)
    Scores.of(Row("a", i, str(i), 1.0) for i in range(10)).write(tmp_path / "baseline/base/scores.jsonl")
    recipes = [
        trial(tmp_path, 0, 20, 0.5),
        trial(tmp_path, 1, 5, 0.9, "stopped"),
        trial(tmp_path, 2, 20, 0.7),
        trial(tmp_path, 3, 0, None, "failed"),
        trial(tmp_path, 4, 30, 0.6, rung=1),  # of more documents: it comes before those below it
    ]

    assert [best(tmp_path, limit) for limit in (29, 30, 54, 55, 84, 999)] == [
        tmp_path / "baseline/base/recipe.yaml",
        recipes[0],
        recipes[0],
        recipes[2],
        recipes[2],
        recipes[4],
    ]


def test_the_table_sets_ours_against_each_at_equal_documents_and_at_a_fifth():
    found = {
        (seed, rival): {"all": value + seed, "a fifth": value - 1}
        for seed in (0, 1)
        for rival, value in (("ours", 60.0), ("random", 50.0))
    }

    lines = table(found, 1000)

    assert lines[2].startswith("| ours | 60.0 | 61.0 | 60.5 |")
    assert "| 50.0 | 51.0 | 50.5 | +10.0 [+10.0, +10.0] | +8.5" in lines[3]


def test_every_rival_runs_in_the_laboratory(laboratory):
    """The same blocks over small sources: each sampler takes its options and ends its trials."""
    from evomerge.study.search import search

    space = read_yaml(laboratory / "space.yaml")
    for rival, block in RIVALS.items():
        data = {**space, "search": {"sampler": "cmaes", "trials": 4, "baselines": False, "eta": 1, **block}}
        (laboratory / f"{rival}.yaml").write_text(dump_yaml(data))
        search(laboratory / f"{rival}.yaml", laboratory / rival, workers=1, reopen=True)
        assert len(list((laboratory / rival / "trials").iterdir())) == 4
        assert Space.from_data(space["recipe"], Place("x"), laboratory)
