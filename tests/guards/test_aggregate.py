"""The aggregates by hand, and their slopes against differences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import SuiteError
from evomerge.guards.aggregate import aggregate, gradient
from evomerge.scoring.suite import AGGREGATES, FLOOR

MEANS = {"add": 0.6, "past": 0.9, "sort": 0.2}
WEIGHTS = {"add": 1.0, "past": 0.5, "sort": 2.5}
PARENTS = {"add": 0.5, "past": 0.9, "sort": 0.4}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", (0.6 + 0.45 + 0.5) / 4),
        ("geometric", (0.6 * 0.9**0.5 * 0.2**2.5) ** 0.25),
        ("min", 0.2),
        ("relative", (1.2 + 0.5 + 1.25) / 4),
    ],
)
def test_each_aggregate_by_hand(kind, expected):
    assert float(aggregate(MEANS, kind, WEIGHTS, PARENTS)) == pytest.approx(expected)


@given(st.lists(st.floats(0.02, 1), min_size=3, max_size=3, unique=True), st.sampled_from(AGGREGATES))
def test_the_gradient_is_the_slope_in_each_task(values, kind):
    means = dict(zip(MEANS, values, strict=True))
    step = 1e-7

    for name, slope in gradient(means, kind, WEIGHTS, PARENTS).items():
        moved = aggregate({**means, name: means[name] + step}, kind, WEIGHTS, PARENTS)
        assert slope == pytest.approx(float(moved - aggregate(means, kind, WEIGHTS, PARENTS)) / step, abs=1e-4)


@pytest.mark.parametrize("kind", AGGREGATES)
def test_arrays_are_aggregated_column_by_column(kind):
    columns = {name: np.array([mean, mean / 2]) for name, mean in MEANS.items()}

    both = aggregate(columns, kind, WEIGHTS, PARENTS)

    for column, one in enumerate(both):
        assert one == pytest.approx(float(aggregate({n: m[column] for n, m in columns.items()}, kind, WEIGHTS, PARENTS)))


@pytest.mark.parametrize("lowest", [0.0, -0.03, FLOOR / 2])
def test_an_estimate_at_or_below_nothing_counts_as_the_floor(lowest):
    assert float(aggregate({"a": lowest, "b": 0.9}, "geometric")) == pytest.approx((FLOOR * 0.9) ** 0.5)


def test_a_task_without_weight_is_no_minimum():
    assert float(aggregate(MEANS, "min", {**WEIGHTS, "sort": 0.0})) == 0.6


def test_relative_without_parents_says_which_are_missing():
    with pytest.raises(SuiteError, match="best parent's mean of past, sort"):
        aggregate(MEANS, "relative", WEIGHTS, {"add": 0.5})


@pytest.mark.parametrize("weights", [{"add": -1.0, "sort": 2.0}, {"add": 0.0, "sort": 0.0}])
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(SuiteError, match="weights must be 0 or more and not all 0"):
        aggregate(MEANS, "mean", weights)
