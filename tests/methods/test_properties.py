"""What holds for every method on whatever it is given: shapes down to nothing, magnitudes from tiny to huge, any weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from evomerge.methods import arcee_fusion, combine, della
from evomerge.methods.inputs import Inputs, Place
from evomerge.methods.table import METHODS, merge_tensor
from evomerge.recipe import COUNTS, INCLUDES_BASE, METHOD_KNOBS
from tests.methods.cases import KNOBS, NAMES, OTHERWISE, count_of

everywhere = pytest.mark.parametrize("method", METHODS)
both = pytest.mark.parametrize("table", [KNOBS, OTHERWISE], ids=["usual", "otherwise"])
several = pytest.mark.parametrize("method", [m for m in METHODS if COUNTS.get(m, (1, 9))[1] > 1])
some = settings(max_examples=10, deadline=None)
shapes = st.sampled_from([(), (1,), (0,), (5, 1), (1, 7), (6, 4), (2, 3, 4), (0, 3), (3, 0)])
seeds = st.integers(0, 2**32)

# Knobs with which sources that are equal give themselves; variants of mergekit have floors that tiny tensors fall below
ALIKE = {
    "linear": {"weight": (0.5, 0.25, 0.75)},
    "task_arithmetic": {"weight": (0.5, -0.3, 0.9), "normalize": True},
    "slerp": {"t": 1.0, "variant": "paper"},
    "ties": {"weight": (0.5, 1.2, 0.9), "density": 1.0},
    "dare_linear": {"weight": (0.5, 0.4, 0.9), "drop_rate": 0.0, "normalize": True},
    "dare_ties": {"weight": (0.5, 0.4, 0.9), "drop_rate": 0.0, "normalize": True},
    "della": {"weight": (0.5, 1.2, 0.9), "density": 1.0},
    "della_linear": {"weight": (0.5, 1.2, 0.9), "density": 1.0, "normalize": True},
    "breadcrumbs": {"weight": (0.5, -0.2, 0.9), "density": 1.0, "normalize": True},
    "breadcrumbs_ties": {"weight": (0.5, 1.2, 0.9), "density": 1.0, "normalize": True},
    "model_stock": {"variant": "paper"},
    "nuslerp": {"weight": (0.5, 1.2)},
    "multislerp": {"weight": (0.5, 1.2, 0.9), "epsilon": 0.0},
    "karcher": {},
    "sce": {"variant": "paper"},
    "nearswap": {"t": 1e30},
    "ram": {"epsilon": 0.0},
    "ramplus_tl": {"epsilon": 0.0},
    "fedavg": {"weight": (0.5, -0.1, 0.9), "clip_norm": 1e30},
    "fisher": {"weight": (0.5, -0.1, 0.9)},
    "regmean": {"weight": (0.5, -0.1, 0.9)},
    "passthrough": {},
}
# and those in whose formulas no length stands
SCALE_FREE = {
    **{method: table[method] for table in (KNOBS,) for method in ("linear", "task_arithmetic", "ties", "passthrough")},
    "slerp": {"t": 0.3, "variant": "paper"},
    "dare_linear": OTHERWISE["dare_linear"],
    "dare_ties": OTHERWISE["dare_ties"],
    "della": OTHERWISE["della"],
    "della_linear": OTHERWISE["della_linear"],
    "breadcrumbs": KNOBS["breadcrumbs"],
    "breadcrumbs_ties": KNOBS["breadcrumbs_ties"],
    "model_stock": OTHERWISE["model_stock"],
    "nuslerp": KNOBS["nuslerp"],
    "multislerp": {"weight": (0.5, 1.2, 0.9), "epsilon": 0.0},
    "karcher": KNOBS["karcher"],
    "sce": {"variant": "paper", "select_topk": 0.6},
    "tsvm": KNOBS["tsvm"],
    "iso_c": KNOBS["iso_c"],
}


def models(method, shape, seed, scale=1.0, dtype=torch.float64, name="t"):
    """A base and sources some of whose elements are the base's."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    deltas = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count_of(method))]
    sources = [base + 0.1 * delta * (torch.rand(shape, generator=generator) > 0.2) for delta in deltas]
    place = Place(seed % 7, name, NAMES[: len(sources)])
    return Inputs((base * scale).to(dtype), tuple((source * scale).to(dtype) for source in sources), place)


def alike(given, source):
    return Inputs(given.base, (source,) * len(given.sources), given.place)


def near(merged, expected, given, rtol=1e-9):
    scale = max([float(t.abs().max()) for t in (given.base, *given.sources) if t.numel()], default=0)
    assert_close(merged.double(), expected.double(), rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("method", ALIKE)
@given(shapes, seeds, st.sampled_from([1e-100, 1e-20, 1e-3, 1.0, 1e20]))
@some
def test_sources_that_are_equal_give_themselves(method, shape, seed, scale):
    given = models(method, shape, seed, scale)
    given = alike(given, given.sources[0])

    merged = merge_tensor(method, given, ALIKE[method])

    near(merged, given.sources[0], given, rtol=1e-7 if method in ("multislerp", "karcher", "nuslerp") else 1e-9)


@several
@both
@given(shapes, seeds, st.permutations([0, 1, 2]))
@some
def test_the_order_of_the_sources_is_free(method, table, shape, seed, order):
    given, knobs = models(method, shape, seed), table[method]
    order = [k for k in order if k < len(given.sources)]
    mixed = Inputs(
        given.base, tuple(given.sources[k] for k in order), Place(given.place.seed, "t", tuple(NAMES[k] for k in order))
    )
    moved = {name: tuple(knob[k] for k in order) if isinstance(knob, tuple) else knob for name, knob in knobs.items()}

    near(merge_tensor(method, mixed, moved), merge_tensor(method, given, knobs), given)


@everywhere
@both
@given(shapes, seeds, st.integers(1, 40), st.booleans())
@some
def test_neither_chunks_nor_what_is_kept_change_a_result(method, table, shape, seed, chunk, resident):
    given = models(method, shape, seed)
    whole = merge_tensor(method, given, table[method])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(combine, "CHUNK", 3 * chunk)
        patch.setattr(della, "PIECE", chunk)
        patch.setattr(arcee_fusion, "PIECE", chunk)

        chunked = merge_tensor(method, Inputs(given.base, given.sources, given.place, resident), table[method])

    near(chunked, whole, given, rtol=1e-13)


@everywhere
@both
@given(shapes, seeds, st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
@some
def test_the_same_seed_gives_the_same_bits(method, table, shape, seed, dtype):
    first, second = (merge_tensor(method, models(method, shape, seed, dtype=dtype), table[method]) for _ in range(2))

    assert torch.equal(first, second)
    assert first.dtype == dtype


@pytest.mark.parametrize("method", [m for m in METHODS if m not in INCLUDES_BASE])
@both
@given(shapes, seeds, st.sampled_from([1e-30, 1.0, 1e30]), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
@some
def test_sources_that_changed_nothing_leave_the_base(method, table, shape, seed, scale, dtype):
    given, knobs = models(method, shape, seed, scale, dtype), table[method]
    if method == "slerp":
        knobs = {**knobs, "variant": "paper"}  # mergekit knows no angle of vectors shorter than 1e-8

    merged = merge_tensor(method, alike(given, given.base), knobs)

    near(merged, given.base, given, rtol=0 if method != "slerp" else 1e-6)


@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher"])
@given(shapes, seeds)
@some
def test_deltas_of_nothing_leave_the_base(method, shape, seed):
    given = models(method, shape, seed)

    assert torch.equal(merge_tensor(method, alike(given, given.base), {**KNOBS[method], "between": "deltas"}), given.base)


@everywhere
@both
@given(shapes, seeds, st.sampled_from([1e-38, 1e-30, 1e-10, 1e10, 1e30]), st.sampled_from([torch.float32, torch.bfloat16]))
@some
def test_tiny_and_huge_numbers_stay_numbers(method, table, shape, seed, scale, dtype):
    given = models(method, shape, seed, scale, dtype)

    merged = merge_tensor(method, given, table[method])

    assert merged.isfinite().all()


@pytest.mark.parametrize("method", SCALE_FREE)
@given(shapes, seeds, st.sampled_from([2.0**-100, 2.0**-30, 2.0**40]))
@some
def test_models_in_other_units_merge_to_the_same(method, shape, seed, unit):
    given, scaled = models(method, shape, seed), models(method, shape, seed, unit)

    near(merge_tensor(method, scaled, SCALE_FREE[method]) / unit, merge_tensor(method, given, SCALE_FREE[method]), given)


# a method at a setting that takes something out of it, and what it then is
REDUCTIONS = {
    "della without drops": ("della", {"density": 1.0}, "ties", {"density": 1.0}),
    "della_linear without drops": ("della_linear", {"density": 1.0}, "task_arithmetic", {}),
    "della_linear without a window": (
        "della_linear", {"density": 0.25, "epsilon": 0.0}, "dare_linear", {"drop_rate": 0.75},
    ),
    "della without a window, as in the paper": (
        "della", {"density": 0.25, "epsilon": 0.0, "variant": "paper"},
        "dare_ties", {"drop_rate": 0.75, "variant": "paper", "normalize": True},
    ),
    "della at density 0": ("della", {"density": 0.0}, "task_arithmetic", {"lambda": 0.0}),
    "dare without drops": ("dare_linear", {"drop_rate": 0.0}, "task_arithmetic", {}),
    "breadcrumbs without a mask": ("breadcrumbs", {"density": 1.0}, "task_arithmetic", {}),
    "breadcrumbs_ties without outliers": (
        "breadcrumbs_ties", {"density": 0.5, "gamma": 0.0, "normalize": True}, "ties", {"density": 0.5},
    ),
    "breadcrumbs_ties whose outliers and density do not fit": (
        "breadcrumbs_ties", {"density": 0.75, "gamma": 0.9}, "breadcrumbs_ties", {"density": 0.75, "gamma": 0.25},
    ),
    "ties rescaled at density 1": ("ties", {"density": 1.0, "rescale": True}, "ties", {"density": 1.0}),
    "ramplus_tl that makes up for nothing": ("ramplus_tl", {"r": 0.0}, "ram", {}),
    "fedavg that clips nothing": ("fedavg", {"clip_norm": 1e6}, "task_arithmetic", {"normalize": True}),
    "sce that selects nothing": ("sce", {"select_topk": 0.0}, "task_arithmetic", {"lambda": 0.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", REDUCTIONS)
@given(st.sampled_from([(8,), (6, 4), (4, 1), (2, 3, 4)]), seeds)
@some
def test_a_method_with_something_left_out_is_a_simpler_one(case, shape, seed):
    method, knobs, simpler, rest = REDUCTIONS[case]
    given, weight = models(method, shape, seed), {"weight": (0.5, 0.25, 0.75)}

    merged, expected = (merge_tensor(m, given, {**weight, **k}) for m, k in ((method, knobs), (simpler, rest)))

    near(merged, expected, given, rtol=1e-14)


@given(shapes, seeds)
@some
def test_nuslerp_from_the_base_is_slerp(shape, seed):
    given = models("slerp", shape, seed)
    both = Inputs(given.base, (given.base, *given.sources), Place(0, "t", ("base", "math")))

    merged = merge_tensor("nuslerp", both, {"weight": (0.7, 0.3)})

    near(merged, merge_tensor("slerp", given, {"t": 0.3, "variant": "paper"}), given)


@given(st.sampled_from([(8,), (6, 4)]), seeds)
@some
def test_of_two_equally_long_models_every_mean_on_the_sphere_is_the_same(shape, seed):
    given = models("nuslerp", shape, seed)
    a, b = (source / source.norm() for source in given.sources)
    pair = Inputs(given.base, (a, b), given.place)

    middle = merge_tensor("nuslerp", pair, {"weight": 1.0})

    near(middle, (a + b) / (a + b).norm(), pair)
    near(merge_tensor("karcher", pair, {}), middle, pair)
    near(merge_tensor("multislerp", pair, {"epsilon": 0.0}), middle, pair)


@given(seeds)
@some
def test_columns_are_the_rows_of_the_transposed(seed):
    given, knobs = models("nuslerp", (5, 4), seed), {"weight": (0.7, 0.3), "along": "columns"}
    turned = Inputs(given.base.T.contiguous(), tuple(s.T.contiguous() for s in given.sources), given.place)

    merged = merge_tensor("nuslerp", given, knobs)

    near(merged, merge_tensor("nuslerp", turned, {**knobs, "along": "rows"}).T, given)


@pytest.mark.parametrize("method", [m for m in METHODS if "lambda" in METHOD_KNOBS[m]])
@given(shapes, seeds)
@some
def test_a_negative_lambda_takes_the_task_away(method, shape, seed):
    """Task-vector negation (Ilharco et al. 2023): λ below 0 mirrors what the same λ above 0 adds at the base."""
    given, knobs = models(method, shape, seed), KNOBS[method]

    there, back = (merge_tensor(method, given, {**knobs, "lambda": scale}) for scale in (0.6, -0.6))

    near(there + back, 2 * given.base, given)


def test_a_negative_weight_takes_the_task_away():
    given = models("task_arithmetic", (6, 4), 0)

    merged = merge_tensor("task_arithmetic", given, {"weight": (-1.0, 0.0, 0.0)})

    near(merged, 2 * given.base - given.sources[0], given)
