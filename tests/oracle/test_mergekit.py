"""mergekit 0.1.5 as an outside oracle, in float64: the same formulas, the same numbers."""

import pytest
import torch
from mergekit.merge_methods import merge_tensors
from torch.testing import assert_close

from evomerge import masks
from evomerge.methods.inputs import Inputs, Place
from evomerge.methods.table import merge_tensor
from tests.methods.cases import NAMES, inputs

SHAPES = [(1,), (63,), (40, 30)]
WEIGHTS = [(1.0, 1.0, 1.0), (0.5, 0.25, 0.9), (0.7, -0.4, 1.3)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
weights = pytest.mark.parametrize("weight", WEIGHTS, ids=str)
normalize = pytest.mark.parametrize("normalize", [False, True])
scales = pytest.mark.parametrize("scale", [1.0, 0.6, -1.5])


def of_mergekit(method: str, given: Inputs, per_source: dict | None = None, **shared: float | bool) -> torch.Tensor:
    """What mergekit makes of the base and its sources; `per_source` has a value for each source."""
    parameters = {name: list(values) for name, values in (per_source or {}).items()} | shared
    return merge_tensors([given.base, *given.sources], method, base_index=0, parameters=parameters)


def same(merged: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-13, atol: float = 1e-15) -> None:
    assert merged.dtype == expected.dtype == torch.float64
    assert_close(merged, expected, rtol=rtol, atol=atol)


@shapes
@weights
@normalize
def test_linear(shape, weight, normalize):
    given = inputs("linear", shape, torch.float64)

    merged = merge_tensor("linear", given, {"weight": weight, "normalize": normalize})

    expected = merge_tensors(list(given.sources), "linear", parameters={"weight": list(weight), "normalize": normalize})
    assert_close(merged, expected, rtol=1e-7, atol=1e-8)  # mergekit keeps weights in float32


@shapes
@weights
@normalize
@scales
def test_task_arithmetic(shape, weight, normalize, scale):
    given = inputs("task_arithmetic", shape, torch.float64)

    merged = merge_tensor("task_arithmetic", given, {"weight": weight, "normalize": normalize, "lambda": scale})

    same(merged, of_mergekit("task_arithmetic", given, {"weight": weight}, normalize=normalize, **{"lambda": scale}))


@shapes
@weights
@normalize
@scales
@pytest.mark.parametrize("density", [(1.0, 1.0, 1.0), (0.2, 0.2, 0.2), (0.01, 0.5, 0.99), (0.0, 0.3, 1.0)], ids=str)
def test_ties(shape, weight, normalize, scale, density):
    given = inputs("ties", shape, torch.float64)
    knobs = {"weight": weight, "density": density, "normalize": normalize, "lambda": scale}

    merged = merge_tensor("ties", given, knobs)

    per_source = {"weight": weight, "density": density}
    same(merged, of_mergekit("ties", given, per_source, normalize=normalize, **{"lambda": scale}))


def test_ties_where_magnitudes_are_equal():
    """Which of the equal ones mergekit keeps is arbitrary: elsewhere the two agree."""
    rounded = inputs("ties", (2000,), torch.bfloat16)
    given = Inputs(rounded.base.double(), tuple(source.double() for source in rounded.sources), rounded.place)
    density, weight = (0.3, 0.5, 0.8), (0.5, 0.25, 0.9)

    merged = merge_tensor("ties", given, {"weight": weight, "density": density})

    expected = of_mergekit("ties", given, {"weight": weight, "density": density})
    pairs = zip(given.magnitudes, given.deltas, density, strict=True)
    free = torch.stack([delta.float().abs() == vector.trim(share).magnitude for vector, delta, share in pairs]).any(0)
    assert 0 < free.sum() < 200
    same(merged[~free], expected[~free])


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@shapes
@weights
@normalize
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("rates", [(0.5, 0.5, 0.5), (0.9, 0.1, 0.0)], ids=str)
def test_dare_with_our_masks(method, shape, weight, normalize, rescale, rates, monkeypatch):
    given = inputs(method, shape, torch.float64)
    place = given.place
    drawn = [masks.uniform(place.seed, name, place.tensor, 0, given.base.numel()) for name in place.sources]
    ours = [(u >= rate).double().view(shape) for u, rate in zip(drawn, rates, strict=True) if rate > 0]
    calls = iter(ours)
    monkeypatch.setattr(torch, "bernoulli", lambda probability, **_: next(calls).to(probability.dtype))

    density = [1 - rate for rate in rates]
    expected = of_mergekit(method, given, {"weight": weight, "density": density}, normalize=normalize, rescale=rescale)

    assert next(calls, None) is None  # all our masks were taken, in the order of the sources
    knobs = {"weight": weight, "drop_rate": rates, "normalize": normalize, "rescale": rescale}
    merged = merge_tensor(method, given, knobs)
    assert_close(merged - given.base, expected - given.base, rtol=2e-6, atol=2e-8)  # mergekit masks in float32 on a CPU


@shapes
@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("spread", [1e-5, 0.001, 0.02, 0.5, 5.0])
def test_slerp(shape, t, spread):
    given = inputs("slerp", shape, torch.float64, spread=spread)

    same(merge_tensor("slerp", given, {"t": t}), of_mergekit("slerp", given, t=t))


@pytest.mark.parametrize("ends", [("zero", "one"), ("one", "zero"), ("one", "minus one"), ("one", "one")], ids=str)
def test_slerp_of_zero_equal_and_opposite_vectors(ends):
    vectors = {"zero": torch.zeros(8).double(), "one": torch.arange(8).double(), "minus one": -torch.arange(8).double()}
    given = Inputs(vectors[ends[0]], (vectors[ends[1]],), Place(0, "t", NAMES[:1]))

    same(merge_tensor("slerp", given, {"t": 0.4}), of_mergekit("slerp", given, t=0.4))


def test_passthrough():
    given = inputs("passthrough", (40, 30), torch.float64)

    merged = merge_tensor("passthrough", given, {"scale": 0.75})

    same(merged, merge_tensors(list(given.sources), "passthrough", parameters={"scale": [0.75]}))


@shapes
@weights
@normalize
def test_ties_rescaled(shape, weight, normalize):
    given, density = inputs("ties", shape, torch.float64), (0.2, 0.5, 0.9)
    knobs = {"weight": weight, "density": density, "normalize": normalize, "rescale": True}

    expected = of_mergekit("ties", given, {"weight": weight, "density": density}, normalize=normalize, rescale=True)
    same(merge_tensor("ties", given, knobs), expected)


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@shapes
@weights
@normalize
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("density", "gamma"), [((0.3, 0.5, 0.9), (0.01, 0.1, 0.3)), ((0.0, 0.7, 1.0), (0.2, 0.0, 0.5))], ids=str)
def test_breadcrumbs(method, shape, weight, normalize, rescale, density, gamma):
    given = inputs(method, shape, torch.float64)
    per_source = {"weight": weight, "density": density, "gamma": gamma}
    shared = {"normalize": normalize, "rescale": rescale, "lambda": 0.6}

    same(merge_tensor(method, given, {**per_source, **shared}), of_mergekit(method, given, per_source, **shared))


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize("shape", [(63,), (40, 30), (2, 2)], ids=str)
@weights
@normalize
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("density", "epsilon"), [((0.5, 0.3, 0.8), (0.15, 0.1, 0.05)), ((1.0, 0.0, 0.4), (0.15,) * 3)], ids=str)
def test_della_with_our_masks(method, shape, weight, normalize, rescale, density, epsilon, monkeypatch):
    given = inputs(method, shape, torch.float64)
    place = given.place
    drawn = [masks.uniform(place.seed, name, place.tensor, 0, given.base.numel()) for name in place.sources]
    calls = iter(u for u, share in zip(drawn, density, strict=True) if 0 < share < 1)
    monkeypatch.setattr(torch, "bernoulli", lambda p, **_: (next(calls).view(p.shape) >= 1 - p).to(p.dtype))
    per_source, shared = {"weight": weight, "density": density, "epsilon": epsilon}, {"normalize": normalize, "rescale": rescale}

    expected = of_mergekit(method, given, per_source, **shared)

    assert next(calls, None) is None  # all our numbers were taken, in the order of the sources
    merged = merge_tensor(method, given, {**per_source, **shared})
    assert_close(merged - given.base, expected - given.base, rtol=2e-6, atol=2e-8)  # mergekit masks in float32 on a CPU


@pytest.mark.parametrize("shape", [(63,), (40, 30), (5, 1), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("spread", [1e-5, 0.01, 1.0])  # at the first the products of lengths lie below mergekit's floor
@pytest.mark.parametrize("count", [2, 3, 4])
def test_model_stock(shape, filter_wise, spread, count):
    given = inputs("model_stock", shape, torch.float64, spread=spread, count=count)

    merged = merge_tensor("model_stock", given, {"filter_wise": filter_wise})

    same(merged, of_mergekit("model_stock", given, filter_wise=filter_wise))


@pytest.mark.parametrize("shape", [(63,), (40, 30), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("weight", [(1.0, 1.0), (0.2, 0.9), (1.5, -0.5), (1.0, -1.0)], ids=str)
@pytest.mark.parametrize("between", ["models", "deltas"])
@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
def test_nuslerp(shape, weight, between, along):
    given = inputs("nuslerp", shape, torch.float64)
    shared = {"nuslerp_flatten": along == "tensor", "nuslerp_row_wise": along == "columns"}  # whose rows are columns

    merged = merge_tensor("nuslerp", given, {"weight": weight, "between": between, "along": along})

    same(merged, between_of_mergekit("nuslerp", given, between, {"weight": weight}, **shared))


def between_of_mergekit(method, given, between, per_source, **shared):
    """mergekit goes between deltas where it is given a base."""
    if between == "deltas":
        return of_mergekit(method, given, per_source, **shared)
    parameters = {name: list(values) for name, values in per_source.items()} | shared
    return merge_tensors(list(given.sources), method, parameters=parameters)


@shapes
@weights
@normalize
@pytest.mark.parametrize("between", ["models", "deltas"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_multislerp(shape, weight, normalize, between, count):
    given = inputs("multislerp", shape, torch.float64, count=count)
    knobs = {"weight": weight[:count], "normalize": normalize, "between": between, "epsilon": 1e-8}

    merged = merge_tensor("multislerp", given, knobs)

    shared = {"normalize_weights": normalize, "eps": 1e-8}
    same(merged, between_of_mergekit("multislerp", given, between, {"weight": weight[:count]}, **shared))


def test_multislerp_of_models_that_cancel():
    pair = Inputs(torch.zeros(8).double(), (torch.arange(8).double(), -torch.arange(8).double()), Place(0, "t", NAMES[:2]))

    merged = merge_tensor("multislerp", pair, {"weight": (1.0, 1.0)})

    same(merged, merge_tensors(list(pair.sources), "multislerp", parameters={"weight": [1.0, 1.0]}))


@shapes
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("spread", [0.001, 0.05, 5.0])
@pytest.mark.parametrize(("steps", "tol"), [(10, 1e-5), (1, 1e-5), (30, 1e-12)])
def test_karcher(shape, count, spread, steps, tol):
    given = inputs("karcher", shape, torch.float64, spread=spread, count=count)

    merged = merge_tensor("karcher", given, {"max_iter": steps, "tol": tol})

    if shape == (1,) and len({bool(source > 0) for source in given.sources}) > 1:
        return  # on a line opposite models have no mean: mergekit divides by the sine of π, we leave the antipode out
    expected = merge_tensors(list(given.sources), "karcher", parameters={"max_iter": steps, "tol": tol})
    same(merged, expected, rtol=1e-12, atol=1e-15 * (1 + spread))


@shapes
@pytest.mark.parametrize("share", [1.0, 0.9, 0.3, 0.01, 0.0])
@pytest.mark.parametrize("spread", [1e-5, 0.01, 1.0])  # at the first all energies lie below mergekit's floor
def test_sce(shape, share, spread):
    given = inputs("sce", shape, torch.float64, spread=spread)

    same(merge_tensor("sce", given, {"select_topk": share}), of_mergekit("sce", given, select_topk=share))


def test_sce_of_sources_that_weigh_next_to_nothing():
    given = inputs("sce", (500,), torch.float64, spread=1.0)
    faint = Inputs(given.base, (given.base + 1e-4 * (given.sources[0] - given.base), *given.sources[1:]), given.place)

    same(merge_tensor("sce", faint, {}), of_mergekit("sce", faint))


@shapes
@pytest.mark.parametrize("t", [0.0, 1e-4, 0.01, 1.0])
def test_nearswap(shape, t):
    given = inputs("nearswap", shape, torch.float64)

    same(merge_tensor("nearswap", given, {"t": t}), of_mergekit("nearswap", given, t=t))


@pytest.mark.parametrize("shape", [(1,), (5, 1), (63,), (40, 30), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("spread", [0.001, 0.1, 2.0])
def test_arcee_fusion(shape, spread):
    given = inputs("arcee_fusion", shape, torch.float64, spread=spread)

    same(merge_tensor("arcee_fusion", given, {}), of_mergekit("arcee_fusion", given))


@shapes
@pytest.mark.parametrize("epsilon", [1e-5, 0.01, 0.5])
def test_ram(shape, epsilon):
    given = inputs("ram", shape, torch.float64)

    same(merge_tensor("ram", given, {"epsilon": epsilon}), of_mergekit("ram", given, epsilon=epsilon))


@shapes
@pytest.mark.parametrize("epsilon", [1e-5, 0.01, 0.02])
@pytest.mark.parametrize(("r", "alpha"), [(0.1, 0.2), (2.0, 5.0)])
def test_ramplus_tl(shape, epsilon, r, alpha):
    given, knobs = inputs("ramplus_tl", shape, torch.float64), {"epsilon": epsilon, "r": r, "alpha": alpha}

    merged, expected = merge_tensor("ramplus_tl", given, knobs), of_mergekit("ramplus_tl", given, **knobs)
    same(merged - given.base, expected - given.base, rtol=1e-7)  # mergekit divides shared by own counts in float32


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "slerp"])
def test_in_bfloat16_we_are_no_further_from_the_truth(method):
    """mergekit rounds at every step in bfloat16, we round once."""
    given = inputs(method, (200, 100))
    exact = Inputs(given.base.double(), tuple(source.double() for source in given.sources), given.place)
    knobs = {"weight": (0.5, 0.25, 0.9), "density": 1.0, "t": 0.3}
    truth = merge_tensor(method, exact, knobs)

    if method == "slerp":
        theirs = of_mergekit(method, given, t=0.3)
    elif method == "linear":
        theirs = merge_tensors(list(given.sources), method, parameters={"weight": list(knobs["weight"])})
    else:
        theirs = of_mergekit(method, given, {"weight": knobs["weight"]} | ({"density": (1.0,) * 3} if method == "ties" else {}))

    ours = merge_tensor(method, given, knobs)
    assert (ours - truth).norm() <= (theirs - truth).norm() * 1.001
