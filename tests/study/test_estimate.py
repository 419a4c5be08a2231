"""Estimates from part of the documents, by hand and by simulation."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ScoringError, SuiteError
from evomerge.study.estimate import estimate, optimism, shrink, shrink_scores, table


def values(scores, first=0):
    return {first + doc: float(score) for doc, score in enumerate(scores)}


BASE = {"add": values([1, 0, 1, 0, 1, 0, 1, 1]), "sort": values([0, 0, 0, 1])}


def test_one_task_by_hand():
    candidate = {"add": {0: 1.0, 1: 1.0, 2: 0.0, 3: 1.0}}

    e = estimate(candidate, BASE, kind="mean").tasks["add"]

    assert e.mean == pytest.approx(5 / 8 + 1 / 4)  # the base on all, plus (0 + 1 - 1 + 1) / 4
    assert e.se == pytest.approx(np.std([0, 1, -1, 1], ddof=1) / 2)
    assert e.n == 4


def test_tasks_are_estimated_first_and_then_aggregated():
    candidate = {"add": {1: 1.0, 2: 1.0}, "sort": {0: 1.0, 3: 1.0}}

    e = estimate(candidate, BASE, kind="geometric")

    add, sort = 5 / 8 + 0.5, 1 / 4 + 0.5
    assert e.value == pytest.approx((add * sort) ** 0.5)
    assert e.se == pytest.approx(e.value / 2 * np.hypot(0.5 / add, 0.5 / sort))
    assert e.n == 4


def test_weights_leave_guard_tasks_out():
    candidate = {"add": {0: 1.0, 1: 0.0}, "sort": {0: 1.0, 3: 1.0}}

    assert estimate(candidate, BASE, kind="mean", weights={"add": 1.0}).value == pytest.approx(5 / 8)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=8, max_size=8))
def test_on_all_documents_the_estimate_is_the_mean(scores):
    e = estimate({"add": values(scores)}, BASE, kind="mean")

    assert e.value == pytest.approx(np.mean(scores))


def test_the_base_is_known_from_any_document():
    for n in (2, 5, 8):
        part = {"add": {doc: BASE["add"][doc] for doc in range(n)}, "sort": dict(BASE["sort"])}

        e = estimate(part, BASE, kind="mean")

        assert (e.value, e.se) == (pytest.approx((5 / 8 + 1 / 4) / 2), 0)


def test_estimates_from_a_random_part_are_right_on_average_and_closer_than_plain_means():
    rng = np.random.default_rng(0)
    base = (rng.random(1000) < 0.5).astype(float)
    candidate = np.where(rng.random(1000) < 0.9, base, rng.random(1000) < 0.8).astype(float)
    errors, plain, claimed = [], [], []
    for _ in range(400):
        seen = rng.permutation(1000)[:60].tolist()
        e = estimate({"t": {doc: candidate[doc] for doc in seen}}, {"t": values(base)}, kind="mean")
        errors.append(e.value - candidate.mean())
        plain.append(candidate[seen].mean() - candidate.mean())
        claimed.append(e.se)

    assert abs(np.mean(errors)) < 2.5 * np.std(errors) / 20
    assert np.std(errors) < 0.6 * np.std(plain)
    assert np.mean(claimed) == pytest.approx(np.std(errors), rel=0.15)


def test_one_document_claims_nothing():
    assert estimate({"add": {0: 1.0}}, BASE, kind="mean").se == 1.0


def test_a_document_that_the_base_lacks_is_named():
    with pytest.raises(ScoringError, match="add: the base has no score of document 8"):
        estimate({"add": {8: 1.0}}, BASE)
    with pytest.raises(ScoringError, match="add: the candidate has no document"):
        estimate({"add": {}}, BASE)
    with pytest.raises(SuiteError, match="no scores of sort"):
        estimate({"add": {0: 1.0}}, BASE, weights={"add": 1, "sort": 1})


def test_an_estimate_is_plain_data():
    e = estimate(BASE, BASE)

    assert json.loads(json.dumps(e.to_dict()))["tasks"]["sort"] == {"mean": 0.25, "se": 0.0, "n": 4}


def test_shrinking_by_hand():
    s = shrink([0.5, 0.6, 0.7], [0.05, 0.05, 0.05])

    assert s.between == pytest.approx(0.01 - 0.0025)
    assert s.kept == pytest.approx([0.75] * 3)
    assert s.values == pytest.approx([0.525, 0.6, 0.675])


def test_a_spread_that_luck_explains_shrinks_to_one_value():
    s = shrink([0.50, 0.52, 0.54], [0.05, 0.05, 0.05])

    assert s.between == 0
    assert s.values == pytest.approx([0.52] * 3)


def test_the_less_certain_is_pulled_further():
    s = shrink([0.2, 0.6], [0.1, 0.2])

    assert s.between == pytest.approx(0.08 - 0.025)
    assert s.kept == pytest.approx([0.055 / 0.065, 0.055 / 0.095])
    assert s.centre == pytest.approx((0.2 / 0.065 + 0.6 / 0.095) / (1 / 0.065 + 1 / 0.095))


def test_without_error_or_without_company_nothing_is_pulled():
    assert shrink([0.1, 0.9], [0.0, 0.0]).values == pytest.approx([0.1, 0.9])
    assert shrink([0.5, 0.5], [0.0, 0.0]).values == pytest.approx([0.5, 0.5])
    assert shrink([0.7], [0.1]).values == pytest.approx([0.7])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 0.5)), min_size=2, max_size=8))
def test_shrinking_keeps_every_value_between_itself_and_the_centre(pairs):
    means, errors = np.array(pairs).T

    s = shrink(means, errors)

    assert ((s.kept >= 0) & (s.kept <= 1)).all()
    assert (np.abs(s.values - s.centre) <= np.abs(means - s.centre) + 1e-12).all()


def crowd(seed, candidates=100, documents=100, ability=0.1):
    """Candidates who answer the same documents, as in the table of measured biases."""
    rng = np.random.default_rng(seed)
    logit = ability * rng.standard_normal((candidates, 1)) - rng.standard_normal(documents)
    rate = 1 / (1 + np.exp(-logit))
    return rate.mean(axis=1), (rng.random(rate.shape) < rate).astype(float)


def test_shared_documents_are_no_error_between_candidates():
    _, scores = crowd(0)

    s = shrink_scores([{"t": values(row)} for row in scores], kind="mean")

    residual = scores - scores.mean(axis=0)
    error2 = residual.var(axis=1, ddof=1).mean() / 100
    between = max(0.0, scores.mean(axis=1).var(ddof=1) - error2)
    assert s.between == pytest.approx(between)
    assert s.values == pytest.approx(scores.mean() + between / (between + error2) * (scores.mean(axis=1) - scores.mean()))


@pytest.mark.parametrize("ability", [0.1, 0.3])
def test_the_best_of_a_hundred_is_overstated_and_shrinking_takes_it_back(ability):
    naive, shrunk, less = [], [], []
    for seed in range(60):
        truth, scores = crowd(seed, ability=ability)
        best = scores.mean(axis=1).argmax()
        rows = [{"t": values(row)} for row in scores]
        naive.append(scores[best].mean() - truth[best])
        shrunk.append(shrink_scores(rows, kind="mean").values[best] - truth[best])
        less.append(naive[-1] - optimism(rows, kind="mean", resamples=100, seed=seed))

    assert np.mean(naive) > 0.05
    assert abs(np.mean(shrunk)) < 0.02
    assert abs(np.mean(less)) < 0.6 * np.mean(naive)


def test_shrinking_an_aggregate_weighs_each_task_by_its_slope():
    rng = np.random.default_rng(0)
    scores = {name: (rng.random((6, 500)) < p).astype(float) for name, p in {"a": 0.2, "b": 0.8}.items()}
    rows = [{name: values(task[k]) for name, task in scores.items()} for k in range(6)]

    geometric = shrink_scores(rows, kind="geometric")
    plain = [np.sqrt(scores["a"][k].mean() * scores["b"][k].mean()) for k in range(6)]

    errors2 = []
    for k, value in enumerate(plain):
        parts = [value / 2 / task[k].mean() * (task[k] - task.mean(axis=0)) for task in scores.values()]
        errors2.append(sum(part.var(ddof=1) / 500 for part in parts))
    expected = shrink(plain, [np.sqrt(np.mean(errors2))] * 6)
    assert geometric.values == pytest.approx(expected.values)


def test_optimism_of_one_candidate_is_nothing_and_of_equals_grows_with_their_number():
    rng = np.random.default_rng(0)
    rows = [{"t": values(rng.random(200) < 0.5)} for _ in range(30)]
    same = [{"t": dict(rows[0]["t"])} for _ in range(5)]

    assert abs(optimism(rows[:1], kind="mean")) < 0.005
    assert abs(optimism(same, kind="mean")) < 0.005
    assert 0.01 < optimism(rows[:3], kind="mean") < optimism(rows, kind="mean")
    assert optimism(rows, kind="mean", seed=1) == optimism(rows, kind="mean", seed=1)


def test_candidates_scored_on_other_documents_are_not_mixed():
    with pytest.raises(ScoringError, match="t: candidate 1 was scored on other documents"):
        table([{"t": {0: 1.0, 1: 0.0}}, {"t": {0: 1.0, 2: 0.0}}])
