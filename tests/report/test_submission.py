"""What a leaderboard is given: the certified model as it lies on disk, and a card that says what steered the search."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import evomerge.zoo
from evomerge.document import dump_yaml, parse_yaml
from evomerge.errors import CheckpointError, DocumentError, StudyError
from evomerge.report.submission import write_submission
from evomerge.scoring.scores import Scores
from evomerge.study.search import search
from tests.studies import stopped

BOARD = {"board": "Small Board", "model": "org/merged", "license": "apache-2.0", "tasks": ["near", "elsewhere"]}


@pytest.fixture
def certified(laboratory):
    for name in ("base", "a", "b"):
        for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            shutil.copyfile(Path(evomerge.zoo.__file__).parent / "models/base" / file, laboratory / name / file)
    assert search(laboratory / "space.yaml", laboratory / "study", workers=1) == 0
    return laboratory


def board(folder, **changed):
    (folder / "board.yaml").write_text(dump_yaml({**BOARD, **changed}))
    return folder / "board.yaml"


def test_the_folder_holds_the_certified_bytes_and_a_card_with_the_sealed_figures(certified):
    folder = write_submission(certified / "study", board(certified))
    certificate = json.loads((folder / "evomerge/certificate.json").read_text())
    card = (folder / "README.md").read_text()
    head = parse_yaml(card.split("---\n")[1], "card")
    sealed = Scores.read(certified / "study/sealed/winner.jsonl")

    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights == certificate["files"]["model/model.safetensors"]
    assert head["license"] == "apache-2.0"
    assert head["base_model"] == ["base", "a", "b"]
    figures = {result["dataset"]["name"]: result["metrics"][0]["value"] for result in head["model-index"][0]["results"]}
    assert figures == {task: round(sealed.mean(task), 4) for task in ("near", "close")}
    assert "documents of `near` steered the search" in card
    assert str(certified) not in card
    assert json.loads((folder / "request.json").read_text())["parameters"] == 240


def test_a_second_call_replaces_the_first(certified):
    write_submission(certified / "study", board(certified))
    folder = write_submission(certified / "study", board(certified, model="org/other"))

    assert "# other" in (folder / "README.md").read_text()
    assert not list((certified / "study").glob("*.draft"))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"parameters": 100}, CheckpointError, "240 parameters; Small Board takes 100 at most"),
        ({"precision": "bfloat16"}, CheckpointError, "has F32 weights; Small Board asks for BF16"),
        ({"licence": "mit"}, DocumentError, "did you mean 'license'"),
    ],
)
def test_what_the_board_does_not_take_is_refused_and_nothing_is_written(certified, changed, error, message):
    with pytest.raises(error, match=message):
        write_submission(certified / "study", board(certified, **changed))

    assert not (certified / "study/submission").exists()


def test_only_a_certified_model_is_submitted(laboratory):
    stopped(laboratory, at="select")

    with pytest.raises(StudyError, match="only a model that is better and certified"):
        write_submission(laboratory / "study", board(laboratory))
