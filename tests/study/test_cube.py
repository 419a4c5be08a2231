"""All axes of the cube at once are what each would be by itself, bit for bit."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from evomerge.study.samplers.cube import Cube

SPACE = {
    "plain": FloatDistribution(-0.3, 1.7),
    "tiny": FloatDistribution(1e-9, 3e-9),
    "log": FloatDistribution(1e-3, 8.0, log=True),
    "steps": FloatDistribution(0.0, 1.0, step=0.1),
    "whole": IntDistribution(1, 9),
    "kind": CategoricalDistribution(("a", "b", "c")),
    "other": FloatDistribution(0.1, 0.7),
}


@pytest.mark.parametrize("x", [0.0, 1e-17, 0.1, 1 / 3, 0.5, 0.9999999999999999, 1.0, 1.5, -0.5])
def test_every_axis_is_what_it_would_be_alone(x):
    together = Cube(SPACE).params(np.full(len(SPACE), x))

    assert together == {name: Cube({name: d}).params(np.array([x]))[name] for name, d in SPACE.items()}
    low, high = -0.3, 1.7
    assert together["plain"] == (high if x >= 1 else min(max(low + x * (high - low), low), high))
    assert type(together["plain"]) is float
