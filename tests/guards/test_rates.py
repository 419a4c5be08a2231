"""Budgets of flips and floors against SciPy's binomial test, and guessing against a simulation of guesses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evomerge.errors import GuardError
from evomerge.guards.rates import chance_flips, decide_flips, decide_floor, flips_needed, rate_test
from evomerge.guards.verdict import together


def scored(n, lost, won):
    """A parent and a candidate that loses and wins so many of n documents."""
    parent = dict.fromkeys(range(n - won), 1.0) | dict.fromkeys(range(n - won, n), 0.0)
    return parent, {doc: float(not value if doc < lost or doc >= n - won else value) for doc, value in parent.items()}


@pytest.mark.parametrize(("lost", "n", "budget"), [(0, 100, 0.02), (3, 400, 0.02), (30, 400, 0.05), (100, 100, 0.5)])
def test_a_budget_of_flips_is_scipys_binomial_test_from_both_sides(lost, n, budget):
    verdict = decide_flips(*scored(n, lost, 0), budget)

    assert verdict.p_pass == pytest.approx(stats.binomtest(lost, n, budget, alternative="less").pvalue)
    assert verdict.p_refuse == pytest.approx(stats.binomtest(lost, n, budget, alternative="greater").pvalue)
    interval = stats.binomtest(lost, n).proportion_ci(confidence_level=0.9, method="exact")
    assert (verdict.low, verdict.high) == pytest.approx((interval.low, interval.high))
    assert verdict.flip_bound == verdict.high


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.floats(0.005, 0.5))
def test_a_budget_is_kept_where_clopper_pearsons_bound_is_below_it(lost, won, budget):
    verdict = decide_flips(*scored(120, lost, won), budget)

    assert (verdict.outcome == "passed") == (verdict.high < budget)
    assert (verdict.outcome == "refused") == (verdict.low > budget)


def test_documents_won_do_not_pay_for_documents_lost():
    verdict = decide_flips(*scored(1600, 100, 300), 0.03)

    assert verdict.outcome == "refused"
    assert verdict.loss == 100 / 1600
    assert "turns 6.2 % of the documents wrong" in verdict.reasons[0]


@pytest.mark.parametrize(("lost", "budget"), [(0, 0.02), (2, 0.05), (7, 0.04)])
def test_as_many_documents_as_a_budget_asks_for_decide_it(lost, budget):
    few = decide_flips(*scored(100, lost, 0), budget)

    assert few.outcome == "undecided"
    assert f"about {few.needed:,} would" in few.reasons[0]
    assert decide_flips(*scored(few.needed, round(lost * few.needed / 100), 0), budget).outcome != "undecided"


def test_flips_that_share_a_context_are_fewer_than_they_look():
    parent = dict.fromkeys(range(1000), 1.0)
    candidate = {doc: float(not 0 <= doc < 20) for doc in parent}

    assert decide_flips(parent, candidate, 0.04).outcome == "passed"
    assert decide_flips(parent, candidate, 0.04, clusters={doc: doc // 20 for doc in parent}).outcome == "undecided"


@pytest.mark.parametrize(("right", "outcome"), [(990, "passed"), (960, "undecided"), (900, "refused")])
def test_a_floor_is_a_binomial_test_of_the_wrong_answers(right, outcome):
    candidate = {doc: float(doc < right) for doc in range(1000)}

    verdict = decide_floor(candidate, 0.95)

    assert verdict.outcome == outcome
    assert verdict.loss == pytest.approx(0.95 - right / 1000)
    assert verdict.p_refuse == pytest.approx(stats.binomtest(1000 - right, 1000, 0.05, alternative="greater").pvalue)
    assert verdict.low < verdict.loss < verdict.high
    assert (verdict.needed is None) == (outcome != "undecided")


def test_a_floor_under_a_graded_score_is_a_test_of_its_mean():
    graded = dict(enumerate(np.random.default_rng(0).normal(-2.0, 0.5, 400).tolist()))

    outcomes = [decide_floor(graded, floor).outcome for floor in (-2.2, -2.0, -1.8)]

    assert outcomes == ["passed", "undecided", "refused"]


@pytest.mark.parametrize("choices", [2, 4])
@pytest.mark.parametrize("known", [0.0, 0.5])
def test_guessing_flips_as_many_documents_as_two_models_that_guess(choices, known):
    rng = np.random.default_rng(0)
    n = 200_000
    right = [(rng.random(n) < 1 / choices) | (np.arange(n) < known * n) for _ in range(2)]  # both know the same documents

    found = chance_flips(right[0].mean(), right[1].mean(), choices)

    assert found == pytest.approx((right[0] & ~right[1]).mean(), abs=2e-3)


def test_nobody_guesses_where_everything_is_known_and_one_choice_is_none():
    assert chance_flips(1.0, 0.7, 4) == 0
    assert chance_flips(0.1, 0.1, 4) == 3 / 16  # worse than guessing: nothing is known
    with pytest.raises(GuardError, match="nothing to guess"):
        chance_flips(0.5, 0.5, 1)


def test_a_refusal_must_stand_among_all_guards():
    doubtful = decide_flips(*scored(400, 14, 0), 0.02)
    kept = decide_flips(*scored(400, 1, 0), 0.02)
    assert (doubtful.outcome, kept.outcome) == ("refused", "passed")

    alone, among = together({"a": doubtful}), together({"a": doubtful, "b": kept, "c": kept})

    assert alone["a"].outcome == "refused"
    assert among["a"].outcome == "undecided"
    assert among["a"].p_holm == pytest.approx(3 * doubtful.p_refuse)
    assert among["a"].needed > 400
    assert among["b"].outcome == "passed"
    assert together({}) == {}


@pytest.mark.parametrize(("budget", "rate"), [(0.08, 0.04), (0.02, 0.01), (0.2, 0.1)])
def test_so_many_documents_pass_a_candidate_within_its_budget_four_times_in_five(budget, rate):
    """Against the exact test: between 75 and 86 % of such candidates pass, as its counts jump."""
    n = flips_needed(budget, rate)
    most = max(count for count in range(n) if rate_test(count, n, budget, 0.05, 0.8).within < 0.05)

    assert 0.75 <= stats.binom.cdf(most, n, rate) <= 0.86


def test_a_rate_at_its_budget_is_shown_by_no_number_of_documents():
    with pytest.raises(GuardError, match=r"a rate of 0\.1 cannot be shown to lie below a budget of 0\.1 by any number"):
        flips_needed(0.1, 0.1)
