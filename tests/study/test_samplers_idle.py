"""What had no say in a trial teaches no sampler anything: two pasts that differ in nothing else have one future."""

import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from evomerge.study.samplers import SAMPLERS, make_sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = {
    "on": CategoricalDistribution((0, 1)),
    "scale": FloatDistribution(0.0, 1.0),
    "kind": CategoricalDistribution((0, 1, 2)),
    "x": FloatDistribution(0.0, 1.0),
}
OPTIONS = {
    "tpe": {"n_startup_trials": 4},
    "gp": {"n_startup_trials": 4},
    "nsga2": {"population_size": 6},
    "nsga3": {"population_size": 6},
    "margins": {"first": 6},
    "niches": {"archive": 6, "mutation": 0.0},
    "auto": {"trials": 400},
    "portfolio": {"arms": ["tpe", "cmaes"]},
}
GENERATION = {"SteadyNsga2:generation": 0, "SteadyNsga3:generation": 0}  # as genetic samplers note it
LEARNERS = sorted(set(SAMPLERS) - {"qmc", "random"})


def used(params):
    return {"on", "x", *(["scale", "kind"] if params["on"] else [])}


def past(seed, count):
    """Trials of which every other has `on` off; the seed decides only what then has no say."""
    same, own = random.Random(0), random.Random(seed)

    def drawn(rng):
        return {"scale": rng.random(), "kind": rng.randrange(3)}

    trials = [{"on": i % 2, "x": same.random(), **drawn(same)} for i in range(count)]
    return [trial if trial["on"] else {**trial, **drawn(own)} for trial in trials]


def future(name, history, active, steps):
    """What is proposed after a past."""
    study = optuna.create_study(
        sampler=make_sampler(name, seed=1, space=SPACE, active=active, **OPTIONS.get(name, {})), direction="maximize"
    )
    for params in history:
        value = params["x"] + params["on"] * (params["scale"] - 0.5)
        study.add_trial(create_trial(params=params, distributions=SPACE, value=value, system_attrs=GENERATION))
    return [study.ask(SPACE).params for _ in range(steps)]


@pytest.mark.parametrize("name", LEARNERS)
def test_what_had_no_say_teaches_nothing(name):
    count, steps = (12, 1) if name == "gp" else (36, 8)

    told, untold = ([future(name, past(seed, count), active, steps) for seed in (1, 2)] for active in (used, None))

    assert told[0] == told[1]
    assert untold[0] != untold[1]  # that is what they would learn


@pytest.mark.parametrize("name", LEARNERS)
def test_a_study_killed_in_the_middle_goes_on_alike(name):
    def go(trials, count):
        study = optuna.create_study(
            sampler=make_sampler(name, seed=3, space=SPACE, active=used, **OPTIONS.get(name, {})), direction="maximize"
        )
        for trial in trials:
            study.add_trial(trial)
        while len(study.trials) < count:
            trial = study.ask(SPACE)
            study.tell(trial, trial.params["x"] + trial.params["on"] * trial.params["scale"])
        return study.trials

    count = 6 if name == "gp" else 26
    whole = go([], count)
    for cut in [5] if name == "gp" else [3, 13, 24]:
        assert [t.params for t in go(whole[:cut], count)] == [t.params for t in whole], f"killed after {cut}"
