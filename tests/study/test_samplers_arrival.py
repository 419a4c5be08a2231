"""Looked at once each, trials stand in the order in which a look at all of them finds them."""

import optuna
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from evomerge.study.memory import create_study
from evomerge.study.samplers import make_sampler
from evomerge.study.samplers.arrival import ARRIVAL, Arrivals, arrived, note_arrival
from evomerge.study.samplers.seeded import DRAW

STEPS = st.lists(st.tuples(st.sampled_from(["ask", "tell", "fail", "add", "look"]), st.integers(0, 30)), max_size=60)


@given(STEPS)
def test_looking_at_the_new_ones_alone_finds_what_looking_at_all_does(steps):
    study, running, arrivals = optuna.create_study(), [], Arrivals()
    for step, number in steps:
        if step == "ask":
            running.append(study.ask())
        elif step == "add":  # of an earlier study, in any order
            study.add_trial(create_trial(value=0.0, system_attrs={ARRIVAL: number}))
        elif step == "look":
            arrivals.look(study)
        elif running:
            trial = running.pop(number % len(running))
            note_arrival(study, study._storage.get_trial(trial._trial_id))
            study.tell(trial, 1.0 if step == "tell" else None, state=TrialState.COMPLETE if step == "tell" else TrialState.FAIL)

    arrivals.look(study)

    assert [trial.number for trial in arrivals.trials] == arrivals.numbers == [trial.number for trial in arrived(study)]


def test_another_study_is_looked_at_from_its_beginning():
    arrivals, studies = Arrivals(), [optuna.create_study(), optuna.create_study()]
    for count, study in zip((3, 2), studies, strict=True):
        for _ in range(count):
            study.add_trial(create_trial(value=0.0))
        arrivals.look(study)

    assert arrivals.numbers == [0, 1]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 4))
def test_a_draw_comes_after_all_that_were_drawn_before_whatever_their_numbers(drawn, more):
    study = create_study(["maximize"], make_sampler("random", seed=0))
    for draw in drawn:  # what several workers had in hand when they were killed: draws in any order, some missing
        study.add_trial(create_trial(value=0.0, system_attrs={DRAW: draw}))

    found = [study._storage.get_trial(study.ask()._trial_id).system_attrs[DRAW] for _ in range(more)]

    first = max(drawn, default=-1) + 1
    assert found == list(range(first, first + more))
