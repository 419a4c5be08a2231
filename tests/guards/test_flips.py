"""Exact and score statistics of flips against SciPy, hand-worked values and plain enumeration."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from evomerge.guards.flips import clopper_pearson, exact_interval, exact_p, mcnemar, mcnemar_greater, score_statistic

counts = st.integers(0, 12).flatmap(lambda lost: st.tuples(st.just(lost), st.integers(0, 12)))


@pytest.mark.parametrize(("count", "n"), [(0, 10), (3, 20), (10, 10), (57, 1600)])
def test_clopper_pearson_is_scipys_exact_interval(count, n):
    expected = stats.binomtest(count, n).proportion_ci(confidence_level=0.90, method="exact")

    assert clopper_pearson(count, n, alpha=0.05) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_flip_in_a_hundred_bounds_the_rate_by_three_percent():
    assert clopper_pearson(0, 100).high == pytest.approx(1 - 0.05**0.01)


@given(counts)
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(flips):
    lost, won = flips
    if lost + won:
        assert mcnemar(lost, won) == pytest.approx(stats.binomtest(won, lost + won).pvalue)
        assert mcnemar_greater(lost, won) == pytest.approx(stats.binomtest(won, lost + won, alternative="greater").pvalue)
    else:
        assert (mcnemar(0, 0), mcnemar_greater(0, 0)) == (1.0, 1.0)


def test_five_won_and_none_lost_is_one_in_thirty_two():
    assert mcnemar_greater(0, 5) == 1 / 32
    assert mcnemar(0, 5) == 1 / 16


@pytest.mark.parametrize(
    ("won", "lost", "n", "difference"), [(3, 9, 50, 0.1), (3, 9, 50, -0.3), (0, 4, 40, 0.05), (20, 31, 400, -0.02)]
)
def test_the_score_statistic_takes_its_variance_at_the_restricted_maximum_likelihood(won, lost, n, difference):
    def minus_log_likelihood(losing):
        winning, same = losing + difference, 1 - 2 * losing - difference
        parts = [(won, winning), (lost, losing), (n - won - lost, same)]
        return -sum(count * math.log(rate) for count, rate in parts if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    losing = optimize.minimize_scalar(minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    variance = n * (2 * losing + difference - difference**2)

    expected = (won - lost - n * difference) / math.sqrt(variance)
    assert float(score_statistic(won, lost, n, difference)) == pytest.approx(expected, abs=1e-4)


def test_at_no_difference_the_score_statistic_is_mcnemars():
    assert float(score_statistic(9, 3, 50, 0.0)) == pytest.approx(6 / math.sqrt(12))


@pytest.mark.parametrize(("lost", "won", "n"), [(0, 0, 50), (3, 9, 50), (0, 4, 400), (30, 0, 30)])
def test_the_exact_interval_holds_the_differences_that_the_exact_test_does_not_exclude(lost, won, n):
    low, high = exact_interval(lost, won, n)

    assert -1 <= low <= (won - lost) / n <= high <= 1
    assert exact_interval(won, lost, n) == (-high, -low)
    assert low == -1 or exact_p(lost, won, n, low) < 0.025 <= exact_p(lost, won, n, low + 2e-4)
    assert high == 1 or exact_p(won, lost, n, -high) < 0.025 <= exact_p(won, lost, n, -high + 2e-4)


def test_no_flip_at_all_is_still_no_certainty():
    assert exact_interval(0, 0, 50) == pytest.approx((-0.072, 0.072), abs=1e-3)  # (1 - .072)^50 = .024


def test_without_a_flip_the_exact_p_is_the_chance_of_missing_every_loss():
    assert exact_p(0, 0, 100, -0.02) == pytest.approx(0.98**100, abs=2e-3)
    assert exact_p(0, 0, 100, -0.02) >= 0.98**100


@settings(max_examples=15, deadline=None)
@given(st.integers(10, 40), st.floats(-0.3, 0.3), st.floats(0, 1))
def test_the_exact_test_never_errs_more_often_than_alpha(n, difference, where):
    least, most = max(0.0, difference), (1 + difference) / 2
    p_won = least + where * (most - least)
    won, lost = np.meshgrid(np.arange(n + 1), np.arange(n + 1))
    possible = won + lost <= n
    won, lost = won[possible], lost[possible]
    mass = stats.multinomial.pmf(
        np.stack([won, lost, n - won - lost], 1), n, [p_won, max(p_won - difference, 0), max(1 - 2 * p_won + difference, 0)]
    )

    likely = mass > 1e-6
    claimed = [exact_p(int(y), int(x), n, difference) < 0.05 for x, y in zip(won[likely], lost[likely], strict=True)]

    assert mass[likely][claimed].sum() <= 0.05


@settings(max_examples=50, deadline=None)
@given(counts, st.floats(-0.2, 0.2), st.floats(0, 0.1))
def test_a_difference_below_an_excluded_one_is_excluded(flips, difference, less):
    lost, won = flips

    if exact_p(lost, won, 60, difference) < 0.05:
        assert exact_p(lost, won, 60, difference - less) < 0.055
