"""Documents that share a context: named by a field of theirs, known in every row, counted in one piece by every guard."""

import json

import pytest

from evomerge.errors import GuardError
from evomerge.guards.criteria import criteria, verdicts
from evomerge.guards.judgement import judge
from evomerge.guards.ledger import Ledger, hold
from evomerge.scoring.bound import Bound
from evomerge.scoring.contexts import contexts_of
from evomerge.scoring.scores import Row, Scores
from evomerge.scoring.suite import GuardConfig

DOCUMENTS = [{"passage": f"a long text {i // 4}", "question": i} for i in range(400)]


def guard(**bound):
    return GuardConfig({"read": Bound(**{"clusters": "passage", **bound})})


def scores(wrong, contexts=None):
    known = contexts or [None] * 400
    return Scores.of(Row("read", doc, f"h{doc}", float(doc not in wrong), context=known[doc]) for doc in range(400))


def test_documents_with_the_same_field_share_a_context_and_those_without_it_stand_alone():
    contexts = contexts_of(guard(loss=0.1), {"read": [*DOCUMENTS, {"question": 400}]})["read"]

    assert [contexts[0] == contexts[doc] for doc in (1, 3, 4)] == [True, True, False]
    assert contexts[400] is None
    assert contexts_of(GuardConfig({"read": 0.1}), {"read": DOCUMENTS}) == {}
    rows = Scores.of([Row("read", 0, "a", 1.0, context="x"), Row("read", 1, "b", 1.0), Row("read", 2, "c", 1.0)])
    assert len(set(rows.clusters("read").values())) == 3


def test_a_field_that_no_document_has_is_refused_with_those_that_there_are():
    with pytest.raises(GuardError, match=r"guard.tasks.read.clusters: no document has 'pasage'; did you mean 'passage'\?"):
        contexts_of(guard(loss=0.1, clusters="pasage"), {"read": DOCUMENTS})


def test_a_row_keeps_its_context_on_disk_and_one_without_is_written_as_before(tmp_path):
    contexts = contexts_of(guard(loss=0.1), {"read": DOCUMENTS})["read"]
    for known, keys in ((contexts, 7), (None, 6)):
        scores(set(), known).write(tmp_path / "scores.jsonl")

        assert Scores.read(tmp_path / "scores.jsonl") == scores(set(), known)
        assert len(json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])) == keys


@pytest.mark.parametrize("bound", [{"loss": 0.04}, {"flips": 0.04}, {"floor": 0.96}])
def test_forty_documents_lost_in_ten_contexts_tell_less_than_forty_lost_alone(bound):
    contexts = contexts_of(guard(loss=0.1), {"read": DOCUMENTS})["read"]
    (one,) = criteria(guard(**bound))
    lost = set(range(40))

    apart, together = (verdicts([one], scores(set()), scores(lost, known))[one.name] for known in (None, contexts))

    assert (apart.outcome, together.outcome) == ("refused", "undecided")
    assert together.n == 400
    assert together.loss == pytest.approx(apart.loss)
    assert together.low < apart.low < apart.high < together.high
    parent, candidate = scores(set()).values("read"), scores(lost).values("read")
    clusters = dict(enumerate(contexts))
    assert (one.broken(parent, candidate), one.broken(parent, candidate, clusters)) == (True, False)


def test_comparison_and_ledger_count_contexts_too():
    contexts = contexts_of(guard(loss=0.1), {"read": DOCUMENTS})["read"]
    line, lost = Ledger("llama").add("one", "a", scores(set())), set(range(40))

    alone, shared = scores(lost), scores(lost, contexts)

    assert hold(line, alone, {"read": 0.05})["read"].outcome == "refused"
    assert hold(line, shared, {"read": 0.05})["read"].outcome == "undecided"
    found = criteria(guard(loss=0.1))
    wide, narrow = (judge(found, scores(set()), s).comparisons["read"].se for s in (shared, alone))
    assert wide > 1.5 * narrow
