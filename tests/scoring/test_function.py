from pathlib import Path

import pytest
import torch

from evomerge.candidate.stream import Candidate
from evomerge.errors import ScoringError, SuiteError
from evomerge.scoring import ScoringConfig, Suite, make_scorer

SOURCE = """
def documents(task):
    if task == "none":
        return []
    return [{"task": task, "target": i} for i in range(5)]

def score(weights, config, task, documents):
    return [float(weights["a"][doc]) + config.get("bonus", 0) for doc in documents]

def short(weights, config, task, documents):
    return [1.0]

def text(weights, config, task, documents):
    return ["much"] * len(documents)

def broken(weights, config, task, documents):
    return 1 / 0
"""


def scorer(folder: Path, name: str, function: str = "score", documents: str = "documents", *, task: str = "fit"):
    (folder / f"{name}.py").write_text(SOURCE)
    config = ScoringConfig("function", function=f"{name}:{function}", documents=f"{name}:{documents}")
    return make_scorer(config, Suite({task: 1.0}), root=folder)


def test_a_users_function_scores_plain_tensors(tmp_path) -> None:
    mine = scorer(tmp_path, "mine_scores")
    mine.load(Candidate.of({"bonus": 10}, {"a": torch.arange(5.0)}, "k"))

    assert len(set(mine.catalogue()["fit"])) == 5
    assert mine.score({"fit": [3, 1]}).values("fit") == {1: 11.0, 3: 13.0}
    assert [row.hash for row in mine.score({"fit": [3]}).rows] == [mine.catalogue()["fit"][3]]


def test_a_candidate_is_copied_and_replaced_by_the_next(tmp_path) -> None:
    mine = scorer(tmp_path, "mine_copies")
    weights = torch.zeros(5)
    mine.load(Candidate.of({}, {"a": weights}, "k"))
    weights += 1

    assert mine.score({"fit": [0]}).mean("fit") == 0.0
    mine.load(Candidate.of({}, {"a": weights}, "l"))
    assert mine.score({"fit": [0]}).mean("fit") == 1.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("short", "mine_errors:short: gave 1 values for 2 documents of 'fit'"),
        ("text", "mine_errors:text: gave 'much' for document 0 of 'fit'"),
        ("broken", "mine_errors:broken: raised ZeroDivisionError on task 'fit'"),
    ],
)
def test_a_function_that_gives_no_numbers_is_told_so(tmp_path, function, message) -> None:
    mine = scorer(tmp_path, "mine_errors", function)
    mine.load(Candidate.of({}, {"a": torch.zeros(5)}, "k"))

    with pytest.raises(ScoringError, match=message):
        mine.score({"fit": [0, 1]})


def test_what_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ScoringError, match=r"scoring.function: .*mine_names.py has no function 'scor'; did you mean 'score'"):
        scorer(tmp_path, "mine_names", "scor")
    with pytest.raises(SuiteError, match="mine_names:documents: task 'none' has no documents"):
        scorer(tmp_path, "mine_names", task="none")
    config = ScoringConfig("function", function="mine_lost:score", documents="mine_lost:documents")
    with pytest.raises(ScoringError, match=r"cannot be imported from .*put mine_lost.py beside the experiment file"):
        make_scorer(config, Suite({"fit": 1.0}), root=tmp_path)
    mine = scorer(tmp_path, "mine_names")
    mine.load(Candidate.of({}, {"a": torch.zeros(5)}, "k"))
    with pytest.raises(ScoringError, match="fit: no document 5; the task has 5"):
        mine.score({"fit": [5]})
    with pytest.raises(ScoringError, match="no model is loaded yet"):
        scorer(tmp_path, "mine_names").score({"fit": [0]})


def test_the_fingerprint_follows_the_source(tmp_path) -> None:
    first = scorer(tmp_path, "mine_prints").suite_fingerprint()
    (tmp_path / "mine_prints.py").write_text(SOURCE + "\n")
    config = ScoringConfig("function", function="mine_prints:score", documents="mine_prints:documents")

    assert make_scorer(config, Suite({"fit": 1.0}), root=tmp_path).suite_fingerprint() != first
