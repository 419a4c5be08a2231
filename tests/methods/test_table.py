"""What holds for every method of the table, or ties one to another."""

import pytest
import torch
from torch.testing import assert_close

from evomerge.errors import RecipeError
from evomerge.methods import combine
from evomerge.methods.inputs import Inputs, Place
from evomerge.methods.table import METHODS, merge_tensor
from evomerge.methods.threshold import thresholds
from evomerge.recipe import INCLUDES_BASE, METHOD_KNOBS, dial_of
from tests.methods.cases import KNOBS, NAMES, OTHERWISE, count_of, inputs
from tests.methods.reference import merge

ELECTING = ("ties", "dare_ties")
DARE = ("dare_linear", "dare_ties")
SPHERICAL = ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")  # sum inner products over a tensor
ENERGETIC = ("sce",)  # sums squares
RESCALED = {method: knobs.get("rescale") for method, knobs in METHOD_KNOBS.items()}  # by a sum of magnitudes
everywhere = pytest.mark.parametrize("method", METHODS)
both = pytest.mark.parametrize("table", [KNOBS, OTHERWISE], ids=["usual", "otherwise"])


def test_the_table_has_the_methods_of_the_recipe():
    assert set(METHODS) == set(METHOD_KNOBS)


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_merging_a_model_with_itself_changes_nothing(method, dtype):
    base = inputs(method, dtype=dtype).base
    count, knobs = count_of(method), {**KNOBS[method], "scale": 1.0}

    merged = merge_tensor(method, Inputs(base, (base,) * count, Place(0, "t", NAMES[:count])), knobs)

    assert merged.dtype == dtype
    assert_close(merged, base, rtol=2e-7 if dtype == torch.float32 else 1e-15, atol=0)


@everywhere
@both
@pytest.mark.parametrize("shape", [(), (1,), (63,), (10, 10), (2000,)], ids=str)
def test_every_method_is_its_formula(method, table, shape):
    given, knobs = inputs(method, shape, torch.float64), table[method]

    merged = merge_tensor(method, given, knobs)

    expected = merge(method, given.base, given.sources, knobs, given.place.sources)
    assert merged.shape == torch.Size(shape)
    assert_close(merged.view(-1), torch.from_numpy(expected), rtol=1e-12, atol=1e-15)


@everywhere
@both
def test_float32_stays_near_float64(method, table):
    given = inputs(method, (100, 100), torch.float32)
    exact = Inputs(given.base.double(), tuple(source.double() for source in given.sources), given.place)

    merged = merge_tensor(method, given, table[method])

    assert_close(merged.double(), merge_tensor(method, exact, table[method]), rtol=1e-6, atol=1e-7)


@everywhere
@both
def test_bfloat16_is_rounded_once(method, table):
    given = inputs(method, (300, 100))
    exact = Inputs(given.base.double(), tuple(source.double() for source in given.sources), given.place)

    merged = merge_tensor(method, given, table[method])

    once = merge_tensor(method, exact, table[method]).bfloat16()
    assert (merged != once).float().mean() < 1e-3  # only where float32 lands beside the middle of two bfloat16


@everywhere
@both
def test_in_bfloat16_only_an_element_at_a_border_is_off_by_more_than_a_rounding(method, table):
    """A vote or a magnitude within float32's reach of its border may fall to the other side: less than 1e-4 of all do.

    With weights like 1.2 and 0.9 more do: bfloat16 deltas of 3 and 4 steps then cancel exactly, and a rounding elects.
    """
    given, knobs = inputs(method, (300, 100)), dict(table[method])
    if isinstance(knobs.get("weight"), tuple):
        knobs["weight"] = tuple(w * odd for w, odd in zip(knobs["weight"], (1.0137, 0.9871, 1.0291), strict=False))
    exact = Inputs(given.base.double(), tuple(source.double() for source in given.sources), given.place)
    truth = merge_tensor(method, exact, knobs)

    error = (merge_tensor(method, given, knobs).double() - truth).abs()

    ulp = 2.0 ** (truth.abs().clamp(min=1e-30).log2().floor() - 7)
    size = torch.stack([exact.base, *exact.sources]).abs().amax(0)
    assert (error > ulp / 2 + 1e-6 * size).double().mean() < 1e-4


@pytest.mark.parametrize("doubled", ["base", "source"])
@pytest.mark.parametrize("resident", [False, True])
def test_one_float64_input_makes_it_float64_inside(doubled, resident):
    given = inputs("ties", (500,), torch.float32, resident=resident)
    base = given.base.double() + 1e-12 if doubled == "base" else given.base
    sources = (given.sources[0].double() + (1e-12 if doubled == "source" else 0), *given.sources[1:])
    mixed = Inputs(base, sources if doubled == "source" else given.sources, given.place, resident)

    merged = merge_tensor("task_arithmetic", mixed, {"weight": (0.5, 0.2, 0.7)}, torch.float64)

    expected = merge("task_arithmetic", mixed.base, mixed.sources, {"weight": (0.5, 0.2, 0.7)}, NAMES)
    assert_close(merged, torch.from_numpy(expected), rtol=1e-14, atol=1e-16)


@everywhere
@both
@pytest.mark.parametrize("resident", [False, True])
def test_no_result_depends_on_the_chunks(method, table, resident, monkeypatch):
    whole = merge_tensor(method, inputs(method, (2000,)), table[method], torch.float32)

    monkeypatch.setattr(combine, "CHUNK", 3 * 97)
    chunked = merge_tensor(method, inputs(method, (2000,), resident=resident), table[method], torch.float32)

    summed = method in (*SPHERICAL, *ENERGETIC) or table[method].get("rescale", RESCALED.get(method))
    assert_close(chunked, whole, rtol=1e-6 if summed else 0, atol=1e-8 if summed else 0)


@everywhere
@both
def test_resident_and_streamed_are_the_same_bits(method, table):
    streamed = merge_tensor(method, inputs(method, (2000,)), table[method], torch.float32)

    kept = inputs(method, (2000,), resident=True)
    for _ in range(2):
        assert torch.equal(merge_tensor(method, kept, table[method], torch.float32), streamed)


@everywhere
def test_the_inputs_are_left_as_they_were(method):
    given = inputs(method, resident=True)
    before = [tensor.clone() for tensor in (given.base, *given.sources, given.deltas, given.uniform)]

    merge_tensor(method, given, KNOBS[method]).zero_()

    for tensor, old in zip((given.base, *given.sources, given.deltas, given.uniform), before, strict=True):
        assert torch.equal(tensor, old)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in INCLUDES_BASE])
def test_a_nan_of_the_base_is_seen_in_the_result(method):
    given = inputs(method, (2000,), torch.float32)
    given.base[::50] = float("nan")

    merged = merge_tensor(method, given, KNOBS[method])

    assert merged[::50].isnan().all()


@everywhere
def test_a_nan_of_a_source_is_seen_in_the_result(method):
    given = inputs(method, (2000,), torch.float32)
    given.sources[0][::50] = float("nan")

    merged = merge_tensor(method, given, KNOBS[method])

    assert merged[::50].isnan().all()


@everywhere
def test_an_empty_tensor_stays_empty(method):
    assert merge_tensor(method, inputs(method, (0, 8)), KNOBS[method]).shape == (0, 8)


@everywhere
def test_knobs_may_be_named_by_source(method):
    given, knobs = inputs(method), KNOBS[method]
    named = {k: dict(zip(NAMES, v, strict=False)) if isinstance(v, tuple) else v for k, v in knobs.items()}

    assert torch.equal(merge_tensor(method, given, named), merge_tensor(method, given, knobs))


@pytest.mark.parametrize("method", [m for m in METHODS if "weight" in METHOD_KNOBS[m] and not dial_of(m, "weight").whole])
def test_a_weight_for_each_group_of_rows(method):
    given = inputs(method, (12, 5), torch.float64)
    knobs = {**KNOBS[method], "weight": ((0.2, 0.5, 0.9), (0.4,), (0.1, 0.2, 0.3))}

    merged = merge_tensor(method, given, knobs)

    for group, weight in enumerate([(0.2, 0.4, 0.1), (0.5, 0.4, 0.2), (0.9, 0.4, 0.3)]):
        rows = slice(4 * group, 4 * group + 4)
        assert_close(merged[rows], merge_tensor(method, given, {**knobs, "weight": weight})[rows], rtol=1e-14, atol=0)


def test_a_density_takes_no_rows():
    with pytest.raises(RecipeError, match="density: 2 row groups"):
        merge_tensor("ties", inputs("ties"), {"weight": 1.0, "density": ((0.1, 0.2), (0.1,), (0.1,))})


def test_weights_that_add_up_to_nothing_make_no_average():
    with pytest.raises(RecipeError, match="add up to 0"):
        merge_tensor("linear", inputs("linear"), {"weight": (1.0, -1.0, 0.0)})


def test_linear_takes_the_base_for_a_source():
    given = inputs("linear", dtype=torch.float64)
    place = Place(0, "t", ("base", *NAMES[:3]))

    merged = merge_tensor("linear", Inputs(given.base, (given.base, *given.sources), place), {"weight": (1.0, 0, 0, 1.0)})

    assert_close(merged, (given.base + given.sources[2]) / 2)


@pytest.mark.parametrize("method", DARE)
def test_dare_with_no_drop_adds_all(method):
    given, weight = inputs(method, (500,), count=1), {"weight": (0.7,)}

    merged = merge_tensor(method, given, {**weight, "drop_rate": (0.0,)}, torch.float32)

    assert_close(merged, merge_tensor("task_arithmetic", given, weight, torch.float32))


def test_dare_linear_with_no_drop_is_task_arithmetic():
    given, weight = inputs("ties", (500,)), {"weight": (0.7, 0.2, -0.5), "lambda": 0.9}

    merged = merge_tensor("dare_linear", given, {**weight, "drop_rate": 0.0}, torch.float32)

    assert torch.equal(merged, merge_tensor("task_arithmetic", given, weight, torch.float32))


def test_dare_ties_with_no_drop_is_ties_at_density_1():
    given, weight = inputs("ties", (500,)), {"weight": (0.7, 0.2, 0.5), "normalize": True}

    dare = merge_tensor("dare_ties", given, {**weight, "drop_rate": 0.0}, torch.float32)

    assert torch.equal(dare, merge_tensor("ties", given, {**weight, "density": 1.0}, torch.float32))


def test_ties_of_one_source_at_density_1_is_task_arithmetic():
    given = inputs("ties", (500,), torch.float64, count=1)

    ties = merge_tensor("ties", given, {"weight": (0.6,), "density": (1.0,), "lambda": 0.6})

    assert_close(ties, merge_tensor("task_arithmetic", given, {"weight": (0.6,)}), rtol=1e-14, atol=0)


def test_dare_keeps_the_expected_delta():
    given = inputs("dare_linear", (400_000,), torch.float32, count=1)
    delta = given.sources[0] - given.base

    for variant in ("paper", "mergekit"):
        merged = merge_tensor("dare_linear", given, {"weight": 1.0, "drop_rate": 0.9, "variant": variant}) - given.base
        kept = merged != 0
        assert kept.float().mean() == pytest.approx(0.1, abs=0.003)
        assert (merged[kept] / delta[kept]).median() == pytest.approx(10, rel=0.02)
        if variant == "mergekit":
            assert merged.abs().sum() == pytest.approx(float(delta.abs().sum()), rel=1e-5)


def test_dare_keeps_a_number_that_equals_the_rate():
    given = inputs("dare_linear", (100,), torch.float32, count=1)
    numbers = given.uniform[0]

    merged = merge_tensor("dare_linear", given, {"weight": 1.0, "drop_rate": float(numbers[7])})

    assert torch.equal(merged != given.base, numbers >= numbers[7])


def test_sources_drop_different_elements():
    given = inputs("dare_linear", (1000,))
    alike = Inputs(given.base, (given.sources[0],) * 2, Place(0, "t", NAMES[:2]))

    alone = [merge_tensor("dare_linear", alike, {"weight": w, "drop_rate": 0.5}) for w in ((1.0, 0.0), (0.0, 1.0))]

    assert not torch.equal(*alone)


def test_the_seed_decides_the_mask():
    given, knobs = inputs("dare_linear", (1000,)), KNOBS["dare_linear"]
    other = Inputs(given.base, given.sources, Place(1, "t", NAMES[:3]))

    assert not torch.equal(merge_tensor("dare_linear", other, knobs), merge_tensor("dare_linear", given, knobs))


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999, 1.0])
def test_paper_ties_is_its_formula(density):
    given = inputs("ties", (40, 25), torch.float64)
    knobs = {"weight": (1.0, 1.0, 1.0), "density": (density,) * 3, "variant": "paper", "lambda": 0.8}
    trims = [thresholds([vector], density)[0] for vector in given.magnitudes]

    merged = merge_tensor("ties", given, {**knobs, "threshold": trims})

    expected = merge("ties", given.base, given.sources, knobs, given.place.sources)
    assert_close(merged.view(-1), torch.from_numpy(expected), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("normalize", [False, True])
def test_paper_dare_ties_is_its_formula(normalize):
    given = inputs("dare_ties", (40, 25), torch.float64)
    knobs = {**KNOBS["dare_ties"], "variant": "paper", "normalize": normalize}

    merged = merge_tensor("dare_ties", given, knobs)

    expected = merge("dare_ties", given.base, given.sources, knobs, given.place.sources)
    assert_close(merged.view(-1), torch.from_numpy(expected), rtol=1e-12, atol=1e-15)


def by_hand(method, **knobs):
    """Four positions: all agree, a majority by weight, a majority by size, a tie."""
    base = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    a = base + torch.tensor([1.0, 2.0, 1.0, 2.0], dtype=torch.float64)
    b = base + torch.tensor([3.0, -1.0, -4.0, -2.0], dtype=torch.float64)
    given = Inputs(base, (a, b), Place(0, "t", ("a", "b")))
    if knobs.get("variant") == "paper":
        knobs["threshold"] = [vector.trim(1.0) for vector in given.magnitudes]
    return merge_tensor(method, given, {"density": (1.0, 1.0), "drop_rate": (0.0, 0.0), **knobs}).tolist()


def test_ties_by_hand():
    #            all agree           2·1 > 1·3        1·1 < 4·3          2·1 < 2·3
    assert by_hand("ties", weight=(1.0, 3.0)) == [1 + (1 + 9) / 4, 1 - 3 / 3, 1 - 12 / 3, 1 - 6 / 3]
    assert by_hand("ties", weight=(1.0, 1.0)) == [3.0, 3.0, -3.0, 3.0]  # a tie is +
    assert by_hand("ties", weight=(1.0, 1.0), normalize=False) == [5.0, 3.0, -3.0, 3.0]
    assert by_hand("ties", weight=(1.0, 1.0), **{"lambda": 0.5}) == [2.0, 2.0, -1.0, 2.0]


def test_paper_ties_by_hand():
    # votes without weights: +4, +1, -3, 0; of the signs + + - 0 the majority is +, so the tie is +
    assert by_hand("ties", weight=(1.0, 1.0), variant="paper") == [3.0, 3.0, -3.0, 3.0]
    assert by_hand("ties", weight=(1.0, 3.0), variant="paper") == [1 + (1 + 9) / 2, 1 + 2, 1 - 12, 1 + 2]


def test_a_tie_goes_to_the_majority_of_signs_in_the_paper():
    base = torch.zeros(3, dtype=torch.float64)
    a, b = torch.tensor([-1.0, -1.0, 2.0]).double(), torch.tensor([-1.0, -1.0, -2.0]).double()
    given = Inputs(base, (a, b), Place(0, "t", ("a", "b")))
    trims = [vector.trim(1.0) for vector in given.magnitudes]

    paper = merge_tensor("ties", given, {"weight": 1.0, "variant": "paper", "threshold": trims})
    mergekit = merge_tensor("ties", given, {"weight": 1.0, "density": 1.0})

    assert paper.tolist() == [-1.0, -1.0, -2.0]
    assert mergekit.tolist() == [-1.0, -1.0, 2.0]


def test_task_arithmetic_by_hand():
    assert by_hand("task_arithmetic", weight=(0.5, 2.0)) == [7.5, 0.0, -6.5, -2.0]
    assert by_hand("task_arithmetic", weight=(0.5, 1.5), normalize=True) == [3.5, 0.75, -1.75, 0.0]
    assert by_hand("task_arithmetic", weight=(1.0, -1.0), normalize=True) == [-1.0, 4.0, 6.0, 5.0]  # Σw = 0 divides nothing


def test_whole_numbers_pass_through():
    steps = torch.arange(5)

    assert torch.equal(merge_tensor("passthrough", Inputs(None, (steps,), Place(0, "t", ("a",))), {"scale": 1.0}), steps)
