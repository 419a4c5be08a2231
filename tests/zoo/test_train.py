"""A family trains to the same bytes again, and learns while it does."""

import json

import pytest
from safetensors.torch import load_file

from evomerge.zoo.skills import TARGETS
from evomerge.zoo.train import train_family

EXPERT = TARGETS[0]


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    places = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for place in places:
        train_family(place, seed=0, only=("base", EXPERT), scale=0.01)
    return places


def test_the_same_seed_trains_to_the_same_bytes(twice):
    first, second = twice
    for name in ("base", EXPERT):
        files = sorted(path.relative_to(first) for path in (first / name).iterdir())
        assert "model.safetensors" in {path.name for path in files}
        for path in files:
            assert (first / path).read_bytes() == (second / path).read_bytes(), path


def test_the_loss_falls(twice):
    history = json.loads((twice[0] / "base" / "training.json").read_text())["history"]

    assert history[-1]["loss"] < history[0]["loss"] < 4.7  # log 99: what a model that knows nothing begins with


def test_an_expert_starts_from_its_base(twice):
    base, expert = (load_file(twice[0] / name / "model.safetensors") for name in ("base", EXPERT))

    assert base.keys() == expert.keys()
    drift = sum((expert[name].float() - base[name].float()).square().sum() for name in base) ** 0.5
    assert 0 < drift < 0.5 * sum(value.float().square().sum() for value in base.values()) ** 0.5
