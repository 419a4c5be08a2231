"""Asked and told in one step, a study is the one that Optuna would have made."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from evomerge.study.memory import ask, create_study, tell
from evomerge.study.samplers import SAMPLERS, make_sampler

MAXIMIZE = [optuna.study.StudyDirection.MAXIMIZE]
SPACE = {
    "x": FloatDistribution(0, 1),
    "log": FloatDistribution(1e-3, 1, log=True),
    "whole": IntDistribution(1, 9, step=2),
    "kind": CategoricalDistribution((0, 1, 2)),
    "only": FloatDistribution(0.5, 0.5),
}


def worth(params):
    return None if params["whole"] == 5 else params["x"] + params["log"] - (params["kind"] == 1)


def seen(study):
    return [(t.number, t.params, t.distributions, t.values, t.state, t.user_attrs, t.system_attrs) for t in study.trials]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_a_study_is_the_one_that_optuna_would_have_made(sampler):
    ours = create_study(MAXIMIZE, make_sampler(sampler, seed=3, space=SPACE))
    theirs = optuna.create_study(direction="maximize", sampler=make_sampler(sampler, seed=3, space=SPACE))
    for study in (ours, theirs):
        study.enqueue_trial({"x": 0.25, "kind": 2})
    running = []
    for _ in range(30):
        trial, same = ask(ours, SPACE), theirs.ask(SPACE)
        trial.set_constraint("c", trial.params["x"] - 0.5)
        same.set_constraint("c", same.params["x"] - 0.5)
        running.append((trial, same))
        if len(running) == 3:  # several at once, told in another order than asked
            trial, same = running.pop(1)
            told = tell(ours, trial, worth(trial.params))
            value = worth(same.params)
            theirs.tell(same, value, state=optuna.trial.TrialState.FAIL if value is None else None)
            assert told.params == trial.params == same.params

    assert seen(ours) == seen(theirs)
    assert {state for *_, state, _, _ in seen(ours)} >= {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL}


def test_a_value_outside_its_range_is_refused():
    study = create_study(MAXIMIZE, optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()

    with pytest.raises(ValueError, match="7"):
        study._storage.set_trial_params(trial._trial_id, {"kind": 7}, SPACE)
