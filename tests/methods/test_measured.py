"""Fisher averaging and RegMean with what was measured of their sources, against the formulas in float64 NumPy."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from evomerge.errors import RecipeError
from evomerge.methods import fisher as fisher_file
from evomerge.methods.table import merge_tensor
from tests.methods.cases import inputs

WEIGHT = (0.5, 0.25, 0.75)


def diagonals(shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) ** 4 for _ in range(3)]


def grams(size, rows=50, seed=1):
    """XᵀX of inputs that are correlated, as hidden states are."""
    generator = torch.Generator().manual_seed(seed)
    mixes = [torch.randn(size, size, generator=generator, dtype=torch.float64) for _ in range(3)]
    given = [torch.randn(rows, size, generator=generator, dtype=torch.float64) @ mix for mix in mixes]
    return [x.T @ x / rows for x in given]


@pytest.mark.parametrize("chunk", [3, 1 << 18])
@pytest.mark.parametrize("shape", [(7,), (6, 5)])
def test_fisher_averaging_is_its_formula(shape, chunk, monkeypatch):
    monkeypatch.setattr(fisher_file, "CHUNK", chunk)
    given, measured = inputs("fisher", shape, torch.float64), diagonals(shape)

    merged = merge_tensor("fisher", given, {"weight": WEIGHT, "epsilon": 1e-3, "diagonals": measured})

    importance = [w * (np.asarray(f) + 1e-3) for w, f in zip(WEIGHT, measured, strict=True)]
    expected = sum(i * np.asarray(s) for i, s in zip(importance, given.sources, strict=True)) / sum(importance)
    assert_close(merged, torch.from_numpy(expected), rtol=1e-13, atol=1e-15)


def test_a_weight_that_matters_to_one_model_only_is_that_models():
    given = inputs("fisher", (4,), torch.float64)
    measured = [torch.tensor([1.0, 0, 0, 1]), torch.tensor([0, 1.0, 0, 1]), torch.tensor([0, 0, 1.0, 1])]

    merged = merge_tensor("fisher", given, {"weight": 1.0, "epsilon": 0.0, "diagonals": measured})

    assert_close(merged[:3], torch.stack([given.sources[i][i] for i in range(3)]))
    assert_close(merged[3], sum(source[3] for source in given.sources) / 3)


def test_one_number_for_a_tensor_is_its_share():
    given = inputs("fisher", (3, 4), torch.float64)

    merged = merge_tensor(
        "fisher", given, {"weight": 1.0, "epsilon": 0.0, "diagonals": [torch.tensor(float(i)) for i in range(3)]}
    )

    assert_close(merged, (given.sources[1] + 2 * given.sources[2]) / 3)


def test_what_matters_to_nobody_needs_an_epsilon():
    given = inputs("fisher", (3,), torch.float64)

    with pytest.raises(RecipeError, match="weights and importances of t add up to 0; raise `epsilon`"):
        merge_tensor("fisher", given, {"weight": 1.0, "epsilon": 0.0, "diagonals": [torch.zeros(3)] * 3})


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_regmean_is_its_formula(alpha):
    given, measured = inputs("regmean", (6, 5), torch.float64), grams(5)

    merged = merge_tensor("regmean", given, {"weight": WEIGHT, "alpha": alpha, "grams": measured})

    share = [w / sum(WEIGHT) for w in WEIGHT]
    scaled = [s * (alpha * np.asarray(g) + (1 - alpha) * np.diag(np.diag(g))) for s, g in zip(share, measured, strict=True)]
    right = sum(g @ np.asarray(s).T for g, s in zip(scaled, given.sources, strict=True))
    expected = np.linalg.lstsq(sum(scaled), right, rcond=None)[0].T
    assert_close(merged, torch.from_numpy(expected), rtol=1e-6, atol=1e-9)  # the ridge is 1e-9 of the diagonal


def test_regmean_answers_most_like_each_model_on_its_own_inputs():
    """It minimises Σ ‖X (W - Wₖ)ᵀ‖²: no step away from it is better."""
    given, measured = inputs("regmean", (6, 5), torch.float64), grams(5)
    merged = merge_tensor("regmean", given, {"weight": 1.0, "alpha": 1.0, "grams": measured})

    def loss(weight):
        moves = [weight - source for source in given.sources]
        return float(sum((move @ gram * move).sum() for move, gram in zip(moves, measured, strict=True)))

    average = sum(given.sources) / 3
    assert loss(merged) < 0.9 * loss(average)
    for seed in range(20):
        step = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert loss(merged + 1e-3 * step) > loss(merged)


def test_inputs_that_no_text_moves_are_averaged():
    given, measured = inputs("regmean", (6, 5), torch.float64), [gram.clone() for gram in grams(5)]
    for gram in measured:
        gram[4], gram[:, 4] = 0, 0

    merged = merge_tensor("regmean", given, {"weight": 1.0, "grams": measured})

    assert_close(merged[:, 4], sum(source[:, 4] for source in given.sources) / 3, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("method", "measured"), [("fisher", {"diagonals": diagonals((6, 5))}), ("regmean", {"grams": grams(5)})])
def test_in_bfloat16_it_is_rounded_once(method, measured):
    given = inputs(method, (6, 5), torch.bfloat16)

    merged = merge_tensor(method, given, {"weight": WEIGHT, **measured})

    exact = merge_tensor(method, given, {"weight": WEIGHT, **measured}, torch.float64)
    assert merged.dtype == torch.bfloat16
    assert_close(merged, exact.bfloat16(), rtol=0, atol=0)
