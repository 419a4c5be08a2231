"""Who goes on: worked sequences, replay, and a race against no race."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.study.race import JUST_BELOW, Arrival, Race


def run(race, values, rung=0, first=0, **how):
    return [race.arrive(Arrival(first + i, rung, value, **how)) for i, value in enumerate(values)]


def test_each_is_compared_with_all_that_came_before():
    decisions = run(Race(rungs=2, eta=2), [0.5, 0.4, 0.6, 0.55, 0.3])

    # best of 1; second of 2; best of 3; second of 4, two may; last of 5
    assert [d.goes_on for d in decisions] == [True, False, True, True, False]
    assert [d.reason for d in decisions] == ["ahead", "behind", "ahead", "ahead", "behind"]


def test_with_fewer_than_eta_arrivals_only_the_best_goes_on():
    decisions = run(Race(rungs=2, eta=4), [0.5, 0.4, 0.6])

    assert [d.goes_on for d in decisions] == [True, False, True]


def test_ties_go_on():
    assert all(d.goes_on for d in run(Race(rungs=2, eta=4), [0.5] * 9))


def test_at_eta_one_everybody_goes_on():
    assert all(d.goes_on for d in run(Race(rungs=2, eta=1), [0.5, 0.1, 0.9, 0.3]))


def test_baselines_go_on_whatever_they_score_and_are_beaten_or_not():
    race = Race(rungs=2, eta=2)

    assert all(d.goes_on for d in run(race, [0.1, 0.7, 0.6], baseline=True))
    assert not race.arrive(Arrival("weak", 0, 0.5)).goes_on
    assert race.arrive(Arrival("strong", 0, 0.65)).goes_on


def test_the_last_rung_finishes_with_the_estimate():
    race = Race(rungs=2, eta=2)
    run(race, [0.5])

    decision = race.arrive(Arrival(0, 1, 0.2))

    assert (decision.goes_on, decision.reason, decision.told) == (False, "finished", 0.2)
    assert run(race, [0.9], first=1)[0].told is None


def test_a_broken_guard_stops_the_best_and_clears_the_way_for_the_next():
    race = Race(rungs=2, eta=2)

    broken = race.arrive(Arrival("forgetful", 0, 0.9, violated=True))

    assert (broken.goes_on, broken.reason) == (False, "guard")
    assert race.arrive(Arrival("next", 0, 0.4)).goes_on


def test_a_baseline_that_breaks_a_guard_is_still_measured_to_the_end():
    race = Race(rungs=2, eta=2)

    assert race.arrive(Arrival("average", 0, 0.9, baseline=True, violated=True)).goes_on
    assert race.arrive(Arrival("average", 1, 0.8, baseline=True, violated=True)).told == 0.8


def test_a_stopped_trial_is_told_its_estimate_or_just_below_the_lowest_survivor():
    race = Race(rungs=2, eta=2)
    run(race, [0.5])
    race.arrive(Arrival(0, 1, 0.3))  # lucky at first, then down to earth

    lucky, weak = run(race, [0.45, 0.1], first=1)

    assert 0.3 - 3 * JUST_BELOW < lucky.told < 0.3 - JUST_BELOW
    assert weak.told == 0.1


def test_trials_held_down_by_the_same_survivor_keep_their_order():
    race = Race(rungs=2, eta=2)
    run(race, [0.5])
    race.arrive(Arrival(0, 1, 0.3))

    told = [race.told_value(Arrival("next", 0, value)) for value in (0.48, 0.47, 0.31, 0.2999, 0.1)]

    assert told == sorted(told, reverse=True)
    assert len(set(told)) == 5


def test_a_weak_baseline_holds_nobody_down():
    race = Race(rungs=2, eta=2)
    run(race, [0.0, 0.6], baseline=True)
    race.arrive(Arrival(0, 1, 0.0, baseline=True))

    assert run(race, [0.5], first=2)[0].told == 0.5


def test_before_a_survivor_is_told_a_stopped_trial_is_told_its_estimate():
    race = Race(rungs=3, eta=2)
    run(race, [0.5])
    race.arrive(Arrival(0, 1, 0.2))

    assert race.told_value(Arrival("next", 0, 0.4)) == 0.4


def test_healed_and_unhealed_candidates_race_apart():
    race = Race(rungs=2, eta=2)
    run(race, [0.6, 0.5, 0.7], healed=True)
    race.arrive(Arrival(0, 1, 0.3, healed=True))

    best, next_best = run(race, [0.2, 0.1], first=3)

    assert best.goes_on  # nobody healed stands in its way
    assert next_best.told == 0.1  # nor holds it down
    assert race.told_value(Arrival("lucky", 0, 0.5, healed=True)) < 0.3


def test_an_arrival_may_be_let_through_more_mildly_than_the_race_does():
    values = [0.5, 0.4, 0.3, 0.45]

    assert [d.goes_on for d in run(Race(rungs=2, eta=4), values)] == [True, False, False, False]
    assert [d.goes_on for d in run(Race(rungs=2, eta=4), values, eta=1.5)] == [True, False, False, True]


def test_a_trial_arrives_once_at_each_rung_and_not_after_it_was_told():
    race = Race(rungs=2, eta=2)
    run(race, [0.5, 0.4])

    for arrival in (Arrival(0, 0, 0.5), Arrival(1, 1, 0.4), Arrival(2, 1, 0.4), Arrival(3, 0, float("nan")), Arrival(0, 2, 0.5)):
        with pytest.raises(ValueError, match="cannot arrive"):
            race.arrive(arrival)
    assert race.arrive(Arrival(0, 1, 0.5)).told == 0.5


def test_a_race_needs_rungs_and_something_to_divide_by():
    for rungs, eta in ((0, 4), (3, 0.9), (3, float("nan"))):
        with pytest.raises(ValueError, match="a race needs"):
            Race(rungs, eta)


scripts = st.lists(
    st.tuples(st.floats(0, 1), st.floats(-0.2, 0.2), st.booleans(), st.sampled_from([False, False, False, True])), max_size=30
)


def play(race, script):
    """One worker: each trial climbs until it is stopped."""
    decisions = []
    for trial, (value, drift, violated, baseline) in enumerate(script):
        for rung in range(race.rungs):
            decisions.append(race.arrive(Arrival(trial, rung, value + rung * drift, baseline, violated and rung == 1)))
            if not decisions[-1].goes_on:
                break
    return decisions


@given(scripts, st.sampled_from([1.0, 2.0, 4.0]), st.integers(1, 4))
def test_a_race_replayed_from_its_record_goes_on_as_the_one_never_killed(script, eta, rungs):
    race = Race(rungs, eta)
    decisions = play(race, script)

    again, restored = Race(rungs, eta, race.arrivals), Race(rungs, eta)
    for arrival, decision in zip(race.arrivals, decisions, strict=True):
        restored.restore(arrival, decision)

    more = [(0.5, 0.0, False, False), (0.7, -0.1, True, False), (0.2, 0.1, False, True)]
    shifted = [Arrival(("new", i), 0, value) for i, (value, *_) in enumerate(more)]
    after = [race.arrive(a) for a in shifted]
    assert [again.arrive(a) for a in shifted] == [restored.arrive(a) for a in shifted] == after


@given(scripts, st.sampled_from([1.0, 2.0, 4.0]))
def test_a_stopped_trial_is_told_less_than_every_survivor_told_before_it(script, eta):
    race, told, survivors = Race(3, eta), {}, {0: set(), 1: set(), 2: set()}
    decisions = play(race, script)

    for arrival, decision in zip(race.arrivals, decisions, strict=True):
        if decision.reason in ("behind", "guard"):
            before = [told[t] for t in survivors[arrival.rung] if t in told]
            assert decision.told <= arrival.value
            assert all(decision.told < other for other in before)
        elif decision.reason == "ahead":
            survivors[arrival.rung].add(arrival.trial)
        if decision.told is not None:
            told[arrival.trial] = decision.told


def simulate(seed, eta, trials=150, rungs=(64, 256, 1024)):
    """Documents spent, and how far the winner's true rate is below the best."""
    rng = np.random.default_rng(seed)
    truth = np.clip(0.5 + 0.05 * rng.standard_normal(trials), 0, 1)
    race, spent, final = Race(len(rungs), eta), 0, {}
    for trial in range(trials):
        right = rng.random(rungs[-1]) < truth[trial]
        for rung, n in enumerate(rungs):
            spent += n - (rungs[rung - 1] if rung else 0)
            decision = race.arrive(Arrival(trial, rung, float(right[:n].mean())))
            if not decision.goes_on:
                break
        if decision.reason == "finished":
            final[trial] = decision.told
    return spent, truth.max() - truth[max(final, key=final.get)]


def test_the_race_spends_a_third_of_the_documents_and_ends_within_a_point():
    raced = np.array([simulate(seed, eta=4) for seed in range(20)])
    whole = np.array([simulate(seed, eta=1) for seed in range(20)])

    assert raced[:, 0].mean() < whole[:, 0].mean() / 3
    assert raced[:, 1].mean() < whole[:, 1].mean() + 0.01
