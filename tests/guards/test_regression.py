"""The guard's decision: its plan in documents, its errors by simulation, its words."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import GuardError
from evomerge.guards.flips import exact_p
from evomerge.guards.regression import (
    clearly_violated,
    constraint,
    decide,
    documents_needed,
    require_documents,
    smallest_margin,
)
from evomerge.guards.verdict import overall


def scored(n, lost, won):
    """A parent and a candidate that loses and wins so many of n documents."""
    parent = dict.fromkeys(range(n - won), 1.0) | dict.fromkeys(range(n - won, n), 0.0)
    return parent, {doc: float(not value if doc < lost or doc >= n - won else value) for doc, value in parent.items()}


@pytest.mark.parametrize(("margin", "documents"), [(0.01, 6184), (0.02, 1546), (0.03, 688)])
def test_the_documents_that_a_margin_needs(margin, documents):
    assert documents_needed(margin) == documents


def test_half_the_flips_need_half_the_documents():
    assert documents_needed(0.02, discordance=0.05) == 773


@given(st.integers(1, 100_000), st.floats(0.01, 0.5))
def test_the_smallest_margin_is_one_that_these_documents_decide(n, discordance):
    margin = smallest_margin(n, discordance)

    assert documents_needed(margin, discordance) == n
    assert documents_needed(0.99 * margin, discordance) > n


def test_a_tolerance_too_tight_for_its_documents_is_refused_with_both_numbers():
    with pytest.raises(
        GuardError, match=r"guard\.tasks\.past: 1,000 sealed documents cannot decide a tolerance of 0\.02, 1,546 would.*to 0\.025"
    ):
        require_documents("past", 1000, 0.02)

    require_documents("past", 1000, 0.025)
    require_documents("past", 1546, 0.02)


def test_no_number_of_documents_decides_a_tolerance_of_zero():
    with pytest.raises(GuardError, match="give one above 0"):
        documents_needed(0.0)


def test_a_candidate_that_answers_alike_passes():
    verdict = decide(*scored(1600, 0, 0), 0.02)

    assert verdict.outcome == "passed"
    assert verdict.high < 0.02
    assert (verdict.loss, verdict.needed) == (0, None)


def test_a_candidate_that_forgot_is_refused():
    verdict = decide(*scored(1600, 120, 20), 0.02)

    assert verdict.outcome == "refused"
    assert verdict.loss == pytest.approx(0.0625)
    assert verdict.low > 0.02
    assert (verdict.negative_flips, verdict.positive_flips) == (120, 20)
    assert verdict.reasons[0].startswith("loses 6.2 points (5.")


@pytest.mark.parametrize(("lost", "won"), [(10, 6), (12, 0), (16, 4)])
def test_what_few_documents_cannot_tell_is_undecided_and_says_how_many_would(lost, won):
    verdict = decide(*scored(400, lost, won), 0.02)

    assert verdict.outcome == "undecided"
    assert verdict.low < 0.02 < verdict.high
    assert verdict.needed > 400
    assert f"400 documents cannot tell, about {verdict.needed:,} would" in verdict.reasons[0]


def test_the_number_that_would_decide_does_when_all_stays_as_it_was():
    few = decide(*scored(400, 14, 10), 0.02)
    assert few.outcome == "undecided"

    times = few.needed / 400
    assert decide(*scored(few.needed, round(14 * times), round(10 * times)), 0.02).outcome == "passed"


def test_a_loss_exactly_at_the_tolerance_is_decided_by_no_number():
    verdict = decide(*scored(100, 2, 0), 0.02)

    assert (verdict.outcome, verdict.needed) == ("undecided", None)


def test_losses_not_yet_met_do_not_pass_for_none():
    assert decide(*scored(120, 0, 0), 0.02).outcome == "undecided"  # .98^120 = 9 %
    assert decide(*scored(160, 0, 0), 0.02).outcome == "passed"  # 4 %

    graded = dict.fromkeys(range(120), 0.5)
    assert decide(graded, graded, 0.02).outcome == "undecided"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.floats(0.005, 0.2))
def test_bounds_and_decision_agree(lost, won, tolerance):
    verdict = decide(*scored(100, lost, won), tolerance)

    assert (verdict.outcome == "passed") == (verdict.high <= tolerance)
    assert (verdict.outcome == "refused") == (verdict.low >= tolerance)
    assert verdict.low <= verdict.loss <= verdict.high


def test_a_verdict_is_plain_data():
    verdict = decide(*scored(100, 4, 1), 0.02)

    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False)) == verdict.to_dict()


def test_one_refusal_refuses_and_only_all_passes_pass():
    passed, refused, undecided = (decide(*scored(1600, lost, 0), 0.02) for lost in (0, 100, 32))

    assert [v.outcome for v in (passed, refused, undecided)] == ["passed", "refused", "undecided"]
    assert overall([passed, passed]) == "passed"
    assert overall([passed, undecided]) == "undecided"
    assert overall([passed, undecided, refused]) == "refused"
    assert overall([]) == "passed"


def test_the_constraint_is_the_loss_above_the_tolerance():
    assert constraint(*scored(50, 5, 1), 0.02) == pytest.approx(0.06)
    assert constraint(*scored(50, 1, 5), 0.02) == pytest.approx(-0.10)


def test_one_document_of_a_small_rung_is_no_error_and_decides_nothing():
    for lost in (1.0, 0.5):
        assert decide({0: 1.0}, {0: 1 - lost}, 0.02).outcome == "undecided"
        assert not clearly_violated({0: 1.0}, {0: 1 - lost}, 0.02)
        assert constraint({0: 1.0}, {0: 1 - lost}, 0.02) == pytest.approx(lost - 0.02)


def test_only_a_loss_that_chance_does_not_explain_stops_a_race():
    assert not clearly_violated(*scored(50, 3, 0), 0.02)
    assert clearly_violated(*scored(50, 12, 0), 0.02)


def test_clustered_documents_decide_less():
    parent, candidate = scored(1600, 30, 25)
    shuffled = np.random.default_rng(0).permutation(1600).tolist()

    assert decide(parent, candidate, 0.02).outcome == "passed"
    assert decide(parent, candidate, 0.02, clusters={doc: i for i, doc in enumerate(shuffled)}).outcome == "passed"
    assert decide(parent, candidate, 0.02, clusters={doc: doc // 100 for doc in parent}).outcome == "undecided"


REPETITIONS = 2000


def errors(nominal):
    return nominal + 2 * (nominal * (1 - nominal) / REPETITIONS) ** 0.5


def shares(n, tolerance, p_lost, p_won):
    """How often a candidate with these rates of flips is passed, and refused."""
    drawn = np.random.default_rng(0).multinomial(n, [p_lost, p_won, 1 - p_lost - p_won], size=REPETITIONS)
    kinds, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    passed = [exact_p(lost, won, n, -tolerance) < 0.05 for lost, won in kinds.tolist()]
    refused = [exact_p(won, lost, n, tolerance) < 0.05 for lost, won in kinds.tolist()]
    return times @ passed / REPETITIONS, times @ refused / REPETITIONS


@pytest.mark.parametrize(
    ("n", "tolerance", "won"),
    [
        (100, 0.05, 0.0),
        (100, 0.05, 0.01),
        (100, 0.02, 0.05),
        (400, 0.02, 0.0),
        (400, 0.02, 0.03),
        (2000, 0.01, 0.0),
        (2000, 0.01, 0.005),
    ],
)
def test_at_the_tolerance_false_passes_and_false_refusals_stay_nominal(n, tolerance, won):
    passed, refused = shares(n, tolerance, won + tolerance, won)

    assert passed <= errors(0.05)
    assert refused <= errors(0.05)


def test_the_planned_documents_pass_a_candidate_that_loses_nothing_four_times_in_five():
    passed, refused = shares(documents_needed(0.03), 0.03, 0.05, 0.05)

    assert 1 - passed <= errors(0.20)
    assert refused == 0


@pytest.mark.parametrize("n", [100, 400])
@pytest.mark.parametrize(("rate", "size"), [(0.02, 1.0), (0.5, 0.04)])
def test_graded_losses_at_the_tolerance_seldom_pass(n, rate, size):
    rng = np.random.default_rng(0)
    parent = dict.fromkeys(range(n), 1.0)
    lost = rng.random((500, n)) < rate

    verdicts = [decide(parent, dict(enumerate(1.0 - size * row * 0.999)), 0.02 * 0.999).outcome for row in lost]

    assert verdicts.count("passed") <= 34  # of 500: 5 % and two Monte-Carlo errors
    assert verdicts.count("refused") <= 34
