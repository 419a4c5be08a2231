"""Where sources disagree the first steps are larger."""

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from safetensors.torch import save_file

from evomerge.document import Place
from evomerge.errors import RecipeError
from evomerge.space import Space
from evomerge.study.discrepancy import LEAST, MOST, distances, scales
from evomerge.study.samplers import CmaEs
from evomerge.study.search import search
from tests.laboratory import change
from tests.studies import Interrupt, parameters


def models(folder):
    """b is b; a and c differ from it in the last layer and agree in the first."""
    torch.manual_seed(0)
    base = {f"layers.{i}.w": torch.randn(8, 8) for i in range(3)}
    shift = torch.randn(8, 8)
    moved = {"base": (0.0, 0.0), "a": (0.1, 0.8), "c": (0.1, -0.8)}
    for name, (first, last) in moved.items():
        (folder / name).mkdir()
        tensors = {**base, "layers.0.w": base["layers.0.w"] + first * shift, "layers.2.w": base["layers.2.w"] + last * shift}
        save_file({k: v.clone() for k, v in tensors.items()}, folder / name / "model.safetensors")
    weight = {name: {"range": [0.0, 1.0], "points": 2} for name in ("a", "c")}
    rules = [{"match": "*", "method": "ties", "density": {"range": [0.1, 1.0]}, "weight": weight}]
    data = {"base": str(folder / "base"), "sources": {name: str(folder / name) for name in ("a", "c")}, "rules": rules}
    return Space.from_data(data, Place("recipe"), folder), shift


def test_distance_from_the_mean_of_the_deltas_tensor_by_tensor(tmp_path):
    from evomerge.candidate.checkpoint import Checkpoint

    _, shift = models(tmp_path)
    base, sources = Checkpoint.open(tmp_path / "base"), {name: Checkpoint.open(tmp_path / name) for name in ("a", "c")}

    apart, size = distances(base, sources)

    assert apart["a"]["layers.2.w"] == pytest.approx(float((0.8 * shift).square().sum()), rel=1e-4)
    assert apart["a"]["layers.0.w"] == pytest.approx(0.0, abs=1e-9)
    assert size["layers.1.w"] == pytest.approx(float(base.read("layers.1.w").square().sum()), rel=1e-5)


def test_the_end_where_they_disagree_takes_larger_steps(tmp_path):
    found = scales(models(tmp_path)[0])

    assert set(found) == {f"rules[0].weight.{source}@{point}" for source in "ac" for point in (0, 1)}
    assert found["rules[0].weight.a@1"] > 1 > found["rules[0].weight.a@0"] >= LEAST
    assert max(found.values()) <= MOST


@pytest.mark.parametrize("dims", [4, 120])
def test_first_proposals_spread_as_their_scales_say(dims):
    space = {f"x{i:03d}": FloatDistribution(0.0, 1.0) for i in range(dims)}
    study = optuna.create_study(sampler=CmaEs(space=space, sigma=0.05, scales={"x000": 2.0, "x001": 0.5}))

    asked = [study.ask(space).params for _ in range(200)]

    spread = {name: np.std([params[name] for params in asked]) for name in ("x000", "x001", "x002")}
    assert spread["x000"] == pytest.approx(0.1, rel=0.2)
    assert spread["x001"] == pytest.approx(0.025, rel=0.2)
    assert spread["x002"] == pytest.approx(0.05, rel=0.2)


def test_a_study_with_a_prior_is_another_and_resumes_as_itself(laboratory):
    plain = laboratory / "plain"
    search(laboratory / "space.yaml", plain, workers=1, trials=6)
    space = change(laboratory, search={"prior": "discrepancy", "trials": 6})
    search(space, laboratory / "whole", workers=1, reopen=True)
    with pytest.raises(KeyboardInterrupt):
        search(space, laboratory / "study", workers=1, reopen=True, watch=Interrupt(3))
    search(space, laboratory / "study", workers=1, reopen=True, resume=True)

    assert parameters(laboratory / "study") == parameters(laboratory / "whole") != parameters(plain)


def test_it_belongs_to_cma_es(laboratory):
    with pytest.raises(RecipeError, match="tpe has no first step"):
        search(change(laboratory, search={"prior": "discrepancy", "sampler": "tpe"}), laboratory / "study", workers=1)
