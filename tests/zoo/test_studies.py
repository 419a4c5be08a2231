"""The same search over several families: the variants are what they say."""

from pathlib import Path

import pytest

from evomerge.document import dump_yaml
from evomerge.scoring.suite import split
from evomerge.study.experiment import Experiment
from evomerge.zoo.studies import UNSEEN, every_document, experiment

SPACE = Path(__file__).parents[2] / "search_spaces/quickstart.yaml"


def written(folder, data):
    (folder / "x.yaml").write_text(dump_yaml(data))
    return Experiment.read(folder / "x.yaml")


def read(folder, variant, trials=None):
    return written(folder, experiment(SPACE, folder, variant, trials))


@pytest.fixture
def searched(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search/certificate.json").write_text('{"trials": 98}')
    return tmp_path


def test_the_quickstart_searches_all_five_kinds_of_number(tmp_path):
    names = [parameter.name for parameter in read(tmp_path, "search").space.parameters]

    for part in ("weight.sort@1", ".density", ".drop_rate", "context.factor", "heal.teachers.base", "heal.teachers.flip"):
        assert any(name.endswith(part) for name in names), part


def test_the_sources_of_a_family_are_its_own(tmp_path):
    recipe = read(tmp_path, "search").space.build(read(tmp_path, "search").space.start())

    assert recipe.base.model == str(tmp_path / "models/base")
    assert recipe.sources["flip"].model == str(tmp_path / "models/flip")


def test_without_a_race_the_same_number_of_trials_runs_to_the_top(searched):
    search = read(searched, "no-race").search

    assert (search.eta, search.trials, search.budget, search.baselines) == (1.0, 98, None, False)


@pytest.mark.parametrize("variant", ["search", "one-weight"])
def test_a_number_of_trials_takes_the_place_of_the_clock(tmp_path, variant):
    assert read(tmp_path, variant).search.budget == Experiment.read(SPACE).search.budget

    assert (read(tmp_path, variant, 40).search.trials, read(tmp_path, variant, 40).search.budget) == (40, None)


def test_one_weight_an_expert_is_three_numbers(tmp_path):
    found = read(tmp_path, "one-weight")

    assert [parameter.name for parameter in found.space.parameters] == [
        f"rules[0].weight.{name}" for name in ("sort", "flip", "rank")
    ]


@pytest.mark.parametrize("variant", ["search", "one-weight"])
def test_a_variant_leaves_suite_and_guard_as_they_are(tmp_path, variant):
    found = read(tmp_path, variant)

    assert (found.suite, found.guard) == (Experiment.read(SPACE).suite, Experiment.read(SPACE).guard)


def test_a_winner_is_scored_again_on_the_studys_own_sealed_documents_and_all_others(tmp_path):
    whole = written(tmp_path, every_document(SPACE, tmp_path))
    catalogue = {task: [f"{task} {i}" for i in range(2000)] for task in whole.suite.tasks}
    again, once = split(whole.suite, None, catalogue), split(Experiment.read(SPACE).suite, None, catalogue)

    for task in catalogue:
        assert len(set(again.sealed[task])) == UNSEEN
        assert set(once.sealed[task]) < set(again.sealed[task])
