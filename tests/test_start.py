"""An experiment file to begin with is one that a search takes as it is."""

import pytest

from evomerge.document import read_yaml
from evomerge.errors import DocumentError, StudyError
from evomerge.start import init
from evomerge.study.experiment import Experiment


def test_without_models_the_file_is_about_those_that_ship(tmp_path):
    experiment = Experiment.read(init(tmp_path / "new", None, [], [], []))

    assert list(experiment.suite.tasks) == ["zoo_sort", "zoo_flip"]
    assert list(experiment.guard.tasks) == ["zoo_past"]
    assert experiment.search.budget == 8 * 3600


@pytest.mark.parametrize("guards", [[], ["mmlu"]])
def test_a_search_grows_where_nothing_is_guarded_and_races_where_something_is(tmp_path, guards):
    data = read_yaml(init(tmp_path, "org/base", ["math=org/math"], ["gsm8k"], guards))

    assert (data["search"].get("grow", 0) > 0) is (not guards)
    assert data["search"].get("eta", 3) == (3 if guards else 1)
    assert len(data["suite"]["rungs"]) == (3 if guards else 4)


def test_models_tasks_and_guards_of_the_command_line_stand_in_the_file(tmp_path):
    path = init(tmp_path, "org/base", ["math=org/math", "code: 1=./co de"], ["gsm8k", "mbpp"], ["mmlu"])
    data = read_yaml(path)

    assert data["recipe"]["base"] == "org/base"
    assert data["recipe"]["sources"] == {"math": "org/math", "code: 1": "./co de"}
    assert list(data["recipe"]["rules"][0]["weight"]) == ["math", "code: 1"]
    assert data["suite"]["tasks"] == {"gsm8k": 1.0, "mbpp": 1.0}
    assert data["guard"] == {"tasks": {"mmlu": 0.03}, "sealed": 1600}


@pytest.mark.parametrize(
    ("base", "sources", "tasks", "message"),
    [
        ("org/base", [], ["gsm8k"], "--base and --source"),
        (None, ["a=b"], ["gsm8k"], "--base and --source"),
        ("org/base", ["math"], ["gsm8k"], "'math' is not NAME=MODEL"),
        ("org/base", ["a=b"], [], "--task NAME"),
    ],
)
def test_half_an_order_is_refused_and_nothing_is_written(tmp_path, base, sources, tasks, message):
    with pytest.raises(DocumentError, match=message):
        init(tmp_path / "new", base, sources, tasks, [])

    assert not (tmp_path / "new").exists()


def test_a_file_that_is_there_stays_as_it_is(tmp_path):
    path = init(tmp_path, None, [], [], [])
    path.write_text("mine")

    with pytest.raises(StudyError, match="exists already"):
        init(tmp_path, None, [], [], [])
    assert path.read_text() == "mine"
