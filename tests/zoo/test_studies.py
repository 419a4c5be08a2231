"""The same search over several families: the variants are what they say, and the table's arithmetic is right."""

import json
from pathlib import Path

import pytest

from evomerge.document import dump_yaml
from evomerge.study.experiment import Experiment
from evomerge.zoo.studies import experiment, table

SPACE = Path(__file__).parents[2] / "search_spaces/quickstart.yaml"


def read(folder, variant):
    (folder / "x.yaml").write_text(dump_yaml(experiment(SPACE, folder, variant)))
    return Experiment.read(folder / "x.yaml")


def certified(folder, seed, winner, others, ending=0):
    study = folder / f"seed-{seed}/search"
    study.mkdir(parents=True)
    sealed = {name: {"mean_skill": mean} for name, mean in {**others, "winner": winner}.items()}
    verdict = {0: "better and certified", 3: "keep your parent"}[ending]
    found = {"ending": ending, "verdict": verdict, "sealed": sealed, "guards": {"zoo_past": {"loss": 0.012}}}
    (study / "certificate.json").write_text(json.dumps({**found, "trials": 98, "documents": 63762}))


def test_the_quickstart_searches_all_five_kinds_of_number(tmp_path):
    names = [parameter.name for parameter in read(tmp_path, "search").space.parameters]

    for part in ("weight.sort@1", ".density", ".drop_rate", "context.factor", "heal.teachers.base", "heal.teachers.flip"):
        assert any(name.endswith(part) for name in names), part


def test_the_sources_of_a_family_are_its_own(tmp_path):
    recipe = read(tmp_path, "search").space.build(read(tmp_path, "search").space.start())

    assert recipe.base.model == str(tmp_path / "models/base")
    assert recipe.sources["flip"].model == str(tmp_path / "models/flip")


def test_without_a_race_the_same_number_of_trials_runs_to_the_top(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search/certificate.json").write_text('{"trials": 98}')
    search = read(tmp_path, "no-race").search

    assert (search.eta, search.trials, search.budget) == (1.0, 98, None)


def test_one_weight_an_expert_is_three_numbers(tmp_path):
    found = read(tmp_path, "one-weight")

    assert [parameter.name for parameter in found.space.parameters] == [
        f"rules[0].weight.{name}" for name in ("sort", "flip", "rank")
    ]
    assert found.search.budget == read(tmp_path, "search").search.budget


def test_gains_are_against_the_best_plain_merge_and_nothing_certified_counts_as_none(tmp_path):
    certified(tmp_path, 2, 0.60, {"base": 0.42, "ties-0.2-0.3": 0.45, "base-healed": 0.57})
    certified(tmp_path, 3, 0.50, {"base": 0.45, "base-yarn": 0.52}, ending=3)
    lines = table(tmp_path, [2, 3], ["search"])

    row = (
        "| 2 | search | better and certified | 60.0 | ties-0.2-0.3 45.0 | +15.0 | base-healed 57.0 | +3.0 | +1.2 | 98 | 63,762 |"
    )
    assert lines[2] == row
    assert "| +0.0 |" in lines[3]
    # gains 15 and 0: mean 7.5, standard error 7.5, t(1) = 12.706
    assert lines[-1] == "search: mean gain +7.5 points [-87.8, +102.8] over 2 seeds"


def test_one_seed_has_no_interval(tmp_path):
    certified(tmp_path, 2, 0.60, {"base": 0.45})

    assert table(tmp_path, [2], ["search"])[-1] == "search: mean gain +15.0 points, one seed"


@pytest.mark.parametrize("variant", ["search", "one-weight"])
def test_a_variant_leaves_suite_and_guard_as_they_are(tmp_path, variant):
    found = read(tmp_path, variant)

    assert (found.suite, found.guard) == (Experiment.read(SPACE).suite, Experiment.read(SPACE).guard)
