"""Every sampler of the table in spaces of any kinds: inside them, repeatable, and after a kill as if there had been none."""

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from evomerge.study.samplers import SAMPLERS, make_sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

TRIALS = 16
EARLY = {  # so small that each is past its random beginning
    "tpe": {"n_startup_trials": 4},
    "nsga2": {"population_size": 4},
    "nsga3": {"population_size": 4},
    "margins": {"first": 5},
    "niches": {"archive": 4},
    "cmaes": {"population": 4},
    "portfolio": {"arms": ["cmaes", "tpe", "random"]},
    "auto": {"trials": 400, "pace": 0.001},  # neither TPE nor a Gaussian process
}

kinds = st.one_of(
    st.tuples(st.floats(-5, 5), st.floats(0.01, 9)).map(lambda ends: FloatDistribution(ends[0], ends[0] + ends[1])),
    st.tuples(st.floats(1e-6, 1), st.floats(2, 1e4)).map(lambda ends: FloatDistribution(ends[0], ends[0] * ends[1], log=True)),
    st.integers(1, 9).map(lambda cells: FloatDistribution(0.0, cells * 0.25, step=0.25)),
    st.tuples(st.integers(-4, 4), st.integers(0, 9)).map(lambda ends: IntDistribution(ends[0], ends[0] + ends[1])),
    st.tuples(st.integers(1, 4), st.integers(1, 60)).map(lambda ends: IntDistribution(ends[0], ends[0] + ends[1], log=True)),
    st.integers(1, 4).map(lambda options: CategoricalDistribution(tuple(range(options)))),
)
spaces = st.lists(kinds, min_size=1, max_size=5).map(lambda drawn: {f"p{i}": kind for i, kind in enumerate(drawn)})


def study_of(name, space, seed, trials=()):
    study = optuna.create_study(sampler=make_sampler(name, seed=seed, space=space, **EARLY.get(name, {})), direction="maximize")
    for trial in trials:
        study.add_trial(trial)
    return study


def go(study, space):
    """To its end: some trials fail, some violate a constraint, the value is coarse."""
    while len(study.trials) < TRIALS:
        trial = study.ask(space)
        place = sum(d.to_internal_repr(trial.params[name]) for name, d in space.items())
        trial.set_constraint("guard", place % 3 - 1.5)
        failed = trial.number % 5 == 3
        study.tell(trial, None if failed else round(place % 7, 1), state=TrialState.FAIL if failed else TrialState.COMPLETE)
    return study.trials


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"gp"}))  # GP takes tenths of a second a trial; see test_samplers.py
@given(space=spaces, seed=st.integers(0, 99), cut=st.integers(1, TRIALS - 1))
@settings(max_examples=6)
def test_it_stays_inside_and_goes_on_after_a_kill_as_if_there_had_been_none(name, space, seed, cut):
    whole = go(study_of(name, space, seed), space)

    for trial in whole:
        assert trial.params.keys() == space.keys()
        assert all(d._contains(d.to_internal_repr(trial.params[parameter])) for parameter, d in space.items())
    again, resumed = (go(study_of(name, space, seed, kept), space) for kept in ([], whole[:cut]))
    assert [trial.params for trial in again] == [trial.params for trial in whole]
    assert [trial.params for trial in resumed] == [trial.params for trial in whole]
