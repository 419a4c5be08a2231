"""A model against its parent: what is judged, what is told, and what is refused to be compared."""

import json

import pytest

from evomerge.errors import GuardError
from evomerge.guards.criteria import Criterion
from evomerge.guards.judgement import judge
from evomerge.scoring.scores import Row, Scores

KEPT = (Criterion("kept", "loss", 0.05),)


def scores(right, of=400, task="kept"):
    return Scores.of(Row(task, doc, f"h{doc}", float(doc < right), response=f"answer {doc < right}") for doc in range(of))


@pytest.mark.parametrize(("right", "outcome", "code"), [(399, "passed", 0), (300, "refused", 4), (382, "undecided", 5)])
def test_the_outcome_and_its_exit_code(right, outcome, code):
    judgement = judge(KEPT, scores(400), scores(right))

    assert (judgement.outcome, judgement.exit_code) == (outcome, code)


def test_a_verdict_tells_every_figure_and_every_document_that_flipped():
    judgement = judge(KEPT, scores(400), scores(398))

    told = json.loads(json.dumps(judgement.to_dict(), allow_nan=False))
    assert told["guards"]["kept"]["loss"] == pytest.approx(2 / 400)
    assert told["guards"]["kept"]["p_holm"] == told["guards"]["kept"]["p_refuse"]
    assert told["comparisons"]["kept"]["negative_flips"] == 2
    assert [(flip["doc"], flip["kind"]) for flip in told["flips"]] == [(398, "lost"), (399, "lost")]
    assert told["flips"][0] == {
        "task": "kept", "doc": 398, "hash": "h398", "kind": "lost", "parent": 1.0, "candidate": 0.0,
        "parent_answer": "answer True", "candidate_answer": "answer False",
    }  # fmt: skip


def test_only_the_documents_of_the_model_are_compared():
    assert judge(KEPT, scores(400), scores(100, of=100)).verdicts["kept"].n == 100


@pytest.mark.parametrize(
    ("parent", "candidate", "message"),
    [
        (scores(400), scores(3, task="other"), "kept: the model has no score of it"),
        (scores(90, of=90), scores(100, of=100), "kept: 10 of 100 documents have no score of the parent, the first is 90"),
        (
            scores(400),
            Scores.of(Row("kept", doc, f"h{doc % 7}", 1.0) for doc in range(10)),
            "kept: document 7 was another one when the parent was scored [(]3 differ[)]",
        ),
    ],
)
def test_models_that_were_not_asked_the_same_are_not_compared(parent, candidate, message):
    with pytest.raises(GuardError, match=message):
        judge(KEPT, parent, candidate)


def test_a_guard_of_nothing_is_refused():
    with pytest.raises(GuardError, match="guards no task"):
        judge((), scores(1), scores(1))
