"""All axes of the cube at once are what each would be by itself, bit for bit."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from evomerge.study.samplers.cube import Cube
from evomerge.study.samplers.uniform import Random

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


@pytest.mark.parametrize("x", [0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_a_value_lies_where_it_was_taken_from(x):
    cube = Cube(SPACE)
    values = cube.params(np.full(len(SPACE), x))
    point = cube.point(values)

    counts = np.maximum(cube.steps, cube.options)
    assert (np.abs(point - x) <= np.where(counts > 0, 0.5 / np.maximum(counts, 1), 0.0) + 1e-12).all()
    assert point.tolist() == [Cube({name: d}).point(values)[0] for name, d in SPACE.items()]


def test_what_is_missing_lies_in_the_middle_and_what_is_outside_at_the_end():
    point = Cube(SPACE).point({"plain": 7.0, "other": -1.0})

    assert point.tolist() == [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0]


def test_a_sampler_asked_in_two_spaces_in_turn_answers_in_each():
    sampler = Random(seed=3)

    for low in (0.0, 5.0, 0.0, 5.0):
        space = {"x": FloatDistribution(low, low + 1)}
        assert sampler.cube(space).space == space
        assert sampler.cube(dict(space)) is sampler.cube(space)
