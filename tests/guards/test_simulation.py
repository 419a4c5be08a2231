"""What the guards claim, over 2,000 repetitions: false passes, false refusals and intervals at what they promise, or better."""

import numpy as np
import pytest

from evomerge.guards.flips import exact_p
from evomerge.guards.paired import holm
from evomerge.guards.pairs import Pairs
from evomerge.guards.rates import rate_test
from evomerge.guards.regression import loss_test

REPETITIONS = 2000
ALPHA, POWER = 0.05, 0.8


def nominal(rate):
    """A rate, and two Monte-Carlo errors on top."""
    return rate + 2 * (rate * (1 - rate) / REPETITIONS) ** 0.5


def drawn(n, p_lost, p_won, seed=0):
    """Kinds of outcomes (lost, won) and how often each came in all repetitions: equal outcomes are judged once."""
    counts = np.random.default_rng(seed).multinomial(n, [p_lost, p_won, 1 - p_lost - p_won], size=REPETITIONS)
    return np.unique(counts[:, :2], axis=0, return_counts=True)


@pytest.mark.parametrize(
    ("n", "tolerance", "won"), [(100, 0.1, 0.1), (100, 0.05, 0.05), (400, 0.05, 0.1), (400, 0.01, 0.0), (2000, 0.02, 0.01)]
)
def test_at_the_tolerance_each_side_of_the_loss_is_claimed_wrongly_no_more_often_than_nominal(n, tolerance, won):
    kinds, times = drawn(n, won + tolerance, won)

    within = np.array([exact_p(lost, w, n, -tolerance) for lost, w in kinds.tolist()])
    beyond = np.array([exact_p(w, lost, n, tolerance) for lost, w in kinds.tolist()])

    assert times @ (within < ALPHA) / REPETITIONS <= nominal(ALPHA)
    assert times @ (beyond < ALPHA) / REPETITIONS <= nominal(ALPHA)
    # the interval is what neither test excludes: 90 % of the time it holds the truth
    assert times @ ((within >= ALPHA) & (beyond >= ALPHA)) / REPETITIONS >= 1 - 2 * ALPHA - 0.02


@pytest.mark.parametrize("n", [100, 400, 2000])
@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2])
def test_a_budget_of_flips_is_seldom_passed_or_refused_wrongly(n, budget):
    counts, times = np.unique(np.random.default_rng(1).binomial(n, budget, REPETITIONS), return_counts=True)

    tests = [rate_test(int(count), n, budget, ALPHA, POWER) for count in counts]

    assert times @ [t.within < ALPHA for t in tests] / REPETITIONS <= nominal(ALPHA)
    assert times @ [t.beyond < ALPHA for t in tests] / REPETITIONS <= nominal(ALPHA)
    assert times @ [t.low <= budget <= t.high for t in tests] / REPETITIONS >= 1 - 2 * ALPHA


@pytest.mark.parametrize(("n", "size"), [(100, 2), (400, 4), (2000, 20)])
@pytest.mark.parametrize("turning", [0.2, 0.6])
def test_documents_that_share_a_context_neither_pass_nor_refuse_too_often(n, size, turning):
    """A context turns as a whole, seven in ten times for the worse: then four in five of its documents flip."""
    rng = np.random.default_rng(2)
    shape = (REPETITIONS, n // size)
    way = np.where(rng.random(shape) < turning, np.where(rng.random(shape) < 0.7, -1, 1), 0)
    delta = (way * rng.binomial(size, 0.8, shape)).astype(float)
    tolerance = turning * 0.4 * 0.8

    tests = [loss_test(contexts(row, size), tolerance, ALPHA, POWER) for row in delta]

    assert np.mean([t.within < ALPHA for t in tests]) <= nominal(ALPHA)
    assert np.mean([t.beyond < ALPHA for t in tests]) <= nominal(ALPHA)
    assert np.mean([t.low <= tolerance <= t.high for t in tests]) >= 1 - 2 * ALPHA - 0.02


def contexts(delta, size):
    lost, won = int(-delta[delta < 0].sum()), int(delta[delta > 0].sum())
    sizes = np.full(len(delta), float(size))
    return Pairs(np.maximum(delta, 0), np.maximum(-delta, 0), sizes, lost, won, False, True, True)


def test_five_guards_at_their_tolerance_are_refused_together_no_more_often_than_one():
    """Holm: any of them refused wrongly, at most once in twenty; without it, once in five."""
    kinds, which = np.unique(np.random.default_rng(3).binomial(400, 0.05, (REPETITIONS, 5)), return_inverse=True)
    p = np.array([rate_test(int(count), 400, 0.05, ALPHA, POWER).beyond for count in kinds])[which.reshape(REPETITIONS, 5)]

    refused = np.array([min(holm(row)) < ALPHA for row in p])

    assert refused.mean() <= nominal(ALPHA)
    assert (p.min(1) < ALPHA).mean() > 0.1


def test_a_candidate_that_breaks_one_guard_of_five_seldom_passes_them_all():
    """No correction is needed: four guards that lose nothing do not help it past the fifth."""
    kinds, times = drawn(400, 0.05 + 0.02, 0.02, seed=4)

    passed = [exact_p(lost, won, 400, -0.05) < ALPHA for lost, won in kinds.tolist()]

    assert times @ passed / REPETITIONS <= nominal(ALPHA)
