import json

import pytest

from evomerge.errors import ScoringError
from evomerge.scoring import Row, Scores

A = Row("sort", 3, "h3", 1.0, 0.5, "abc")
B = Row("sort", 1, "h1", 0.0)
C = Row("flip", 7, "h7", 1.0, -0.25)


def test_rows_are_kept_by_task_and_document() -> None:
    scores = Scores.of([A, B, C])

    assert scores.rows == (C, B, A)
    assert scores.tasks == ("flip", "sort")
    assert scores.documents == {"flip": [7], "sort": [1, 3]}
    assert scores.values("sort") == {1: 0.0, 3: 1.0}
    assert scores.margins("sort") == {3: 0.5}
    assert scores.means() == {"flip": 1.0, "sort": 0.5}


def test_scores_add_up_and_an_equal_row_counts_once() -> None:
    assert Scores.of([A, B]) + Scores.of([B, C]) == Scores.of([A, B, C])


def test_a_document_scored_twice_with_two_results_is_refused() -> None:
    with pytest.raises(ScoringError, match="sort: document 3 was scored twice with different results"):
        Scores.of([A]) + Scores.of([Row("sort", 3, "h3", 0.0, 0.5, "abc")])


def test_a_mean_without_documents_is_refused() -> None:
    with pytest.raises(ScoringError, match=r"rank: no document of this task was scored \(scored: sort\)"):
        Scores.of([A]).mean("rank")


def test_a_selection_has_exactly_the_documents_named() -> None:
    scores = Scores.of([A, B, C])

    assert scores.select({"sort": [3], "flip": [7]}) == Scores.of([A, C])
    with pytest.raises(ScoringError, match="sort: 1 of 2 documents were not scored, the first is 9"):
        scores.select({"sort": [3, 9]})


def test_a_file_gives_back_the_same_rows_and_leaves_no_other_file(tmp_path) -> None:
    scores = Scores.of([A, B, C])
    scores.write(tmp_path / "scores.jsonl")

    assert Scores.read(tmp_path / "scores.jsonl") == scores
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]
    first = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
    assert first == {"task": "flip", "doc": 7, "hash": "h7", "value": 1.0, "margin": -0.25, "response": None}


def test_a_number_that_json_does_not_know_leaves_the_old_file_alone(tmp_path) -> None:
    Scores.of([A]).write(tmp_path / "scores.jsonl")

    with pytest.raises(ValueError, match="JSON compliant"):
        Scores.of([Row("sort", 3, "h3", float("nan"))]).write(tmp_path / "scores.jsonl")

    assert Scores.read(tmp_path / "scores.jsonl") == Scores.of([A])
    assert len(list(tmp_path.iterdir())) == 1


def test_a_broken_line_is_named(tmp_path) -> None:
    Scores.of([A, B]).write(tmp_path / "scores.jsonl")
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write('{"task": "so')

    with pytest.raises(ScoringError, match=r"scores.jsonl, line 3: not a row"):
        Scores.read(tmp_path / "scores.jsonl")
