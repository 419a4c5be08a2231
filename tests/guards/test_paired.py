"""Comparisons of two scored models against SciPy, by hand, and by simulation."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evomerge.errors import ScoringError, SuiteError
from evomerge.guards.aggregate import aggregate
from evomerge.guards.inference import by_bootstrap, by_student
from evomerge.guards.paired import compare, compare_tasks, holm
from evomerge.guards.pairs import pair

KINDS = ["mean", "geometric", "min", "relative"]


def values(scores):
    return dict(enumerate(map(float, scores)))


def flipped(n, lost, won, right):
    """A reference right on `right` of n, and a candidate that loses and wins so many."""
    reference = [1.0] * right + [0.0] * (n - right)
    candidate = [0.0] * lost + [1.0] * (right - lost + won) + [0.0] * (n - right - won)
    return values(candidate), values(reference)


def test_the_figures_of_a_small_table_by_hand():
    candidate, reference = flipped(50, lost=3, won=9, right=30)

    c = compare(candidate, reference)

    assert (c.n, c.candidate, c.reference) == (50, 0.72, 0.6)
    assert c.difference == pytest.approx(0.12)
    assert (c.negative_flips, c.positive_flips) == (3, 9)
    assert c.se == pytest.approx(np.std([-1] * 3 + [1] * 9 + [0] * 38, ddof=1) / 50**0.5)
    assert c.mcnemar_p == pytest.approx(stats.binomtest(3, 12).pvalue)
    assert c.p_greater == pytest.approx(stats.binomtest(9, 12, alternative="greater").pvalue)
    assert c.flip_bound == pytest.approx(stats.beta.ppf(0.95, 4, 47))
    assert c.method == "exact"


def test_from_three_hundred_documents_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    new, old = rng.integers(0, 2, 300), rng.integers(0, 2, 300)

    c = compare(values(new), values(old), confidence=0.9)

    two, one = stats.ttest_rel(new, old), stats.ttest_rel(new, old, alternative="greater")
    assert c.p_two_sided == pytest.approx(two.pvalue)
    assert c.p_greater == pytest.approx(one.pvalue)
    assert (c.low, c.high) == pytest.approx(tuple(two.confidence_interval(0.9)))
    assert c.method == "paired t"


def test_rare_flips_are_judged_exactly_however_many_documents():
    candidate, reference = flipped(5000, lost=0, won=4, right=2500)

    assert compare(candidate, reference).p_greater == 1 / 16


def test_graded_scores_of_few_documents_get_a_wider_interval_than_paired_t():
    rng = np.random.default_rng(1)
    new, old = rng.random(40), rng.random(40)

    c = compare(values(new), values(old))

    low, high = stats.ttest_rel(new, old).confidence_interval(0.95)
    assert c.low < low < high < c.high
    assert c.high - c.low < 1.25 * (high - low)
    assert c.se == pytest.approx(stats.sem(new - old))


def test_two_models_alike_on_every_document_are_not_proven_equal():
    same = values([0.5] * 20)

    c = compare(same, same)

    assert c.low < 0 < c.high
    assert c.p_greater == 0.5


def test_documents_of_a_cluster_count_as_one():
    rng = np.random.default_rng(2)
    new, old = rng.random(400), rng.random(400)
    thrice = values(np.repeat(new, 3)), values(np.repeat(old, 3))

    clustered = compare(*thrice, clusters={doc: doc // 3 for doc in range(1200)})

    once = compare(values(new), values(old))
    assert clustered.n == 1200
    assert (clustered.low, clustered.high, clustered.se) == pytest.approx((once.low, once.high, once.se))
    assert compare(*thrice).se < 0.6 * once.se


def test_clusters_of_one_document_change_nothing():
    candidate, reference = flipped(80, lost=3, won=9, right=40)

    assert compare(candidate, reference, clusters={doc: f"passage {doc}" for doc in range(80)}) == compare(candidate, reference)


def test_the_reference_may_know_more_documents_but_not_fewer():
    candidate, reference = flipped(50, lost=3, won=9, right=30)

    assert compare(candidate, {**reference, 99: 1.0}) == compare(candidate, reference)
    with pytest.raises(ScoringError, match="lacks document 50"):
        compare({**candidate, 50: 1.0}, reference)
    with pytest.raises(ScoringError, match="no document to compare"):
        compare({}, reference)


@pytest.mark.parametrize("score", [1.0, 0.7])
def test_one_document_is_compared_and_tells_nothing(score):
    c = compare({0: score}, {0: 0.0})

    assert c.se == 1
    assert c.low < 0 < c.high
    assert c.p_greater > 0.05


@given(st.permutations(range(12)))
def test_the_order_of_the_documents_does_not_matter(order):
    candidate, reference = flipped(12, lost=2, won=3, right=6)

    assert compare({doc: candidate[doc] for doc in order}, reference) == compare(candidate, reference)


def three_tasks(seed=0, n=200, gain=0.1):
    rng = np.random.default_rng(seed)
    old = {name: values(rng.random(n) < p) for name, p in {"sort": 0.3, "add": 0.6, "past": 0.8}.items()}
    new = {name: {doc: float(v or rng.random() < gain) for doc, v in task.items()} for name, task in old.items()}
    return new, old


def test_the_mean_of_tasks_is_the_plain_mean_of_their_differences():
    new, old = three_tasks()

    c = compare_tasks(new, old)

    each = [compare(new[name], old[name]) for name in new]
    assert c.n == 600
    assert c.difference == pytest.approx(np.mean([e.difference for e in each]))
    assert c.se == pytest.approx(np.sqrt(sum(e.se**2 for e in each)) / 3)
    assert c.positive_flips == sum(e.positive_flips for e in each)
    assert dict(c.tasks) == dict(zip(new, each, strict=True))


def test_weights_weigh_and_tasks_without_one_are_left_out():
    new, old = three_tasks()

    c = compare_tasks(new, old, weights={"sort": 3, "add": 1})

    sort, add = (compare(new[name], old[name]) for name in ("sort", "add"))
    assert c.difference == pytest.approx(0.75 * sort.difference + 0.25 * add.difference)
    assert c.se == pytest.approx(np.hypot(0.75 * sort.se, 0.25 * add.se))
    assert set(c.tasks) == {"sort", "add"}


def test_unequal_tasks_get_welchs_degrees_of_freedom():
    rng = np.random.default_rng(3)
    new = {"a": values(rng.random(5)), "b": values(rng.random(2000))}
    old = {"a": values(np.zeros(5)), "b": values(np.zeros(2000))}

    c = compare_tasks(new, old)

    welch = stats.ttest_ind(list(new["a"].values()), [-v for v in new["b"].values()], equal_var=False)
    assert 2 * c.difference == pytest.approx(np.mean(list(new["a"].values())) + np.mean(list(new["b"].values())))
    assert c.p_two_sided == pytest.approx(welch.pvalue)


def test_relative_divides_each_task_by_its_best_parent():
    new, old = three_tasks()
    best = {"sort": 0.5, "add": 0.6, "past": 0.8}

    c = compare_tasks(new, old, kind="relative", references=best)

    assert c.difference == pytest.approx(np.mean([c.tasks[name].difference / best[name] for name in best]))


def test_the_geometric_comparison_is_near_the_delta_method():
    new, old = three_tasks(n=2000)

    c = compare_tasks(new, old, kind="geometric")

    after, before = (np.prod([getattr(t, side) for t in c.tasks.values()]) ** (1 / 3) for side in ("candidate", "reference"))
    assert c.difference == pytest.approx(after - before)
    variance = 0.0
    for name, task in c.tasks.items():
        y, x = (np.array(list(side[name].values())) for side in (new, old))
        variance += np.var(after / 3 / task.candidate * y - before / 3 / task.reference * x) / 2000
    assert c.se == pytest.approx(variance**0.5, rel=0.03)
    assert (c.low, c.high) == pytest.approx((c.difference - 1.96 * c.se, c.difference + 1.96 * c.se), abs=0.1 * c.se)


@pytest.mark.parametrize("kind", ["geometric", "min"])
def test_resampled_p_values_are_those_of_the_interval(kind):
    new, old = three_tasks(n=400, gain=0.03)

    gain, loss = compare_tasks(new, old, kind=kind), compare_tasks(old, new, kind=kind)

    normal = stats.norm.sf(gain.difference / gain.se)
    assert gain.p_greater == pytest.approx(normal, abs=0.01)
    assert loss.p_greater > 0.99
    assert (gain.p_two_sided, loss.p_two_sided) == pytest.approx((2 * gain.p_greater,) * 2, abs=0.01)


def test_resampling_a_handful_of_wins_claims_no_more_than_counting_them():
    candidate, reference = flipped(400, lost=0, won=3, right=200)

    c = compare_tasks({"t": candidate}, {"t": reference}, kind="geometric")

    assert c.p_greater == pytest.approx(1 / 8, abs=0.06)
    assert c.low < 0


def test_the_minimum_compares_the_weakest_tasks():
    new, old = three_tasks(n=2000)

    c = compare_tasks(new, old, kind="min")

    assert c.difference == c.tasks["sort"].difference
    assert c.se == pytest.approx(c.tasks["sort"].se, rel=0.03)


@pytest.mark.parametrize("kind", ["mean", "min"])
def test_one_task_alone_is_the_comparison_of_that_task(kind):
    candidate, reference = flipped(50, lost=3, won=9, right=30)

    alone, c = compare(candidate, reference), compare_tasks({"sort": candidate}, {"sort": reference}, kind=kind)

    assert c.tasks["sort"] == alone
    assert {**c.to_dict(), "tasks": None} == {**alone.to_dict(), "tasks": None}


@pytest.mark.parametrize("kind", KINDS)
def test_comparing_a_model_with_itself_shows_nothing(kind):
    new, _ = three_tasks()

    c = compare_tasks(new, new, kind=kind, references=dict.fromkeys(new, 0.5))

    assert c.difference == 0
    assert c.low <= 0 <= c.high
    assert c.p_greater >= 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_is_repeatable_and_written_as_json(kind):
    new, old = three_tasks()
    again = {name: dict(reversed(task.items())) for name, task in reversed(new.items())}

    first, second = (compare_tasks(side, old, kind=kind, references=dict.fromkeys(new, 0.5)) for side in (new, again))

    assert json.loads(json.dumps(first.to_dict(), allow_nan=False)) == json.loads(json.dumps(second.to_dict()))


def test_a_task_that_was_not_scored_is_named():
    new, old = three_tasks()

    with pytest.raises(SuiteError, match="no scores of reverse"):
        compare_tasks(new, old, weights={"sort": 1, "reverse": 1})
    with pytest.raises(SuiteError, match="unknown 'median'; known are"):
        compare_tasks(new, old, kind="median")


def test_holm_on_an_example_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p):
    order = sorted(range(len(p)), key=lambda i: p[i])
    rejected = set()
    for step, i in enumerate(order):
        if p[i] * (len(p) - step) > 0.05:
            break
        rejected.add(i)

    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= 0.05} == rejected


def covered(draws, truth, make):
    """Share of draws whose 95 % interval holds the truth."""
    return np.mean([c.low <= truth <= c.high for c in (make(*draw) for draw in draws)])


@pytest.mark.parametrize(("n", "flips"), [(30, 0.1), (100, 0.03), (400, 0.01), (400, 0.2), (2000, 0.03)])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_intervals_of_right_and_wrong_cover_what_they_say(n, flips, share):
    drawn = np.random.default_rng(0).multinomial(n, [flips * (1 - share), flips * share, 1 - flips], size=500)
    kinds, times = np.unique(drawn, axis=0, return_counts=True)
    truth = flips * (2 * share - 1)

    inside = [covered([flipped(n, lost, won, n - won)], truth, compare) for lost, won, _ in kinds]

    assert times @ inside / 500 >= 0.93


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize("flips", [0.05, 0.3, 1.0])
def test_intervals_of_graded_scores_cover_what_they_say(n, flips):
    rng = np.random.default_rng(0)
    zero = values(np.zeros(n))

    draws = [(values((rng.random(n) < flips) * rng.choice([-0.5, 0.5, 1.0], n)), zero) for _ in range(500)]

    assert covered(draws, flips / 3, compare) >= 0.93


@pytest.mark.parametrize(("kind", "n"), [("mean", 40), ("geometric", 40), ("geometric", 200)])
def test_intervals_of_aggregates_cover_what_they_say(kind, n, monkeypatch):
    monkeypatch.setattr("evomerge.guards.inference.RESAMPLES", 400)
    old, up, down = np.array([0.4, 0.6, 0.8]), 0.2, 0.05
    new = old * (1 - down) + (1 - old) * up
    rng = np.random.default_rng(0)

    def inference():
        before = [rng.random(n) < p for p in old]
        after = [np.where(b, rng.random(n) > down, rng.random(n) < up) for b in before]
        pairs = {str(t): pair(values(a), values(b)) for t, (a, b) in enumerate(zip(after, before, strict=True))}
        linear = by_student(list(pairs.values()), [1 / 3] * 3, 0.95)
        return linear if kind == "mean" else by_bootstrap(pairs, lambda means: aggregate(means, kind), 0.95, seed=0)

    truth = new.mean() - old.mean() if kind == "mean" else np.prod(new) ** (1 / 3) - np.prod(old) ** (1 / 3)
    assert np.mean([i.low <= truth <= i.high for i in (inference() for _ in range(300))]) >= 0.93
