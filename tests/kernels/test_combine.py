"""The kernel against plain torch: odd shapes, every dtype, every method and option."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from evomerge import kernels, masks
from evomerge.errors import MissingExtra
from evomerge.methods import combine as specification
from evomerge.methods.inputs import Inputs, Place
from evomerge.methods.table import METHODS, merge_tensor
from evomerge.recipe import METHOD_KNOBS
from tests.methods.cases import KNOBS, OTHERWISE, inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1,), (9, 7), (2000,)]
both = pytest.mark.parametrize("table", [KNOBS, OTHERWISE], ids=["usual", "otherwise"])


def on_device(given: Inputs) -> Inputs:
    return Inputs(given.base.to(DEVICE), tuple(source.to(DEVICE) for source in given.sources), given.place)


def both_sides(method, given, knobs, dtype):
    results = []
    for side in ("triton", "torch"):
        with kernels.backend(side):
            results.append(merge_tensor(method, on_device(given), knobs, dtype).cpu())
    return results


@pytest.mark.parametrize("method", METHODS)
@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_kernel_is_the_specification(method, table, shape, dtype):
    given = inputs(method, shape, dtype)
    exact = Inputs(given.base.double(), tuple(source.double() for source in given.sources), given.place)

    kernel, plain = both_sides(method, given, table[method], torch.float32)

    truth = merge_tensor(method, exact, table[method])
    assert (kernel - truth).norm() <= 2 * (plain - truth).norm() + 1e-9 * truth.norm()
    if measured(method, table[method]):
        assert_close(kernel, plain, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(kernel, plain)


def measured(method: str, knobs: dict[str, object]) -> bool:
    """Whether a norm is summed, whose last bits depend on the order."""
    return bool(knobs.get("rescale", METHOD_KNOBS[method].get("rescale"))) and knobs.get("variant") != "paper"


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "della", "breadcrumbs_ties"])
def test_more_than_a_block(method):
    kernel, plain = both_sides(method, inputs(method, (128 * 1024 + 1,)), KNOBS[method], torch.float32)

    assert_close(kernel, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_result_is_rounded_to_nearest(method, dtype):
    given = inputs(method, (5000,), torch.float32)

    rounded, _ = both_sides(method, given, KNOBS[method], dtype)

    full, _ = both_sides(method, given, KNOBS[method], torch.float32)
    assert torch.equal(rounded, full.to(dtype))


def test_a_tie_between_two_bfloat16_goes_to_the_even_one():
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, float("inf"), -float("inf"), 0.0, 3.4e38])

    with kernels.backend("triton"):
        merged = specification.combine(None, [halfway.to(DEVICE)], [(1.0,)], subtract=False, dtype=torch.bfloat16).cpu()

    assert merged.tolist() == [1.0, 1.015625, -1.0, float("inf"), -float("inf"), 0.0, float("inf")]


@pytest.mark.parametrize(("block", "size"), [(4, 37), (64, 300), (1024, 4001), (1 << 17, 4001)])
def test_masks_are_the_same_bits_whatever_the_block(block, size, monkeypatch):
    from evomerge.kernels import combine as module

    monkeypatch.setattr(module, "BLOCK", block)
    key = masks.key(0, "math", "t")
    numbers = masks.draw(key, 0, size)

    for rate in (0.5, *numbers[[0, 1, 2, 35]].tolist()):  # a number that equals the rate is kept, to the last bit
        drops = masks.Drops((rate,), (key,), (1.0,))
        with kernels.backend("triton"):
            kept = specification.combine(None, [torch.ones(size, device=DEVICE)], [[1.0]], keep=drops, subtract=False).cpu()
        assert torch.equal(kept == 1, numbers >= torch.tensor(rate))


@pytest.mark.parametrize("method", ["ties", "dare_ties", "linear"])
def test_a_weight_for_each_group_of_rows(method):
    given = inputs(method, (12, 50))
    knobs = {**KNOBS[method], "weight": ((0.2, 0.5, 0.9), (0.4,), (0.1, 0.2, 0.3))}

    kernel, plain = both_sides(method, given, knobs, torch.float32)

    assert_close(kernel, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["linear", "ties", "della", "breadcrumbs", "model_stock"])
def test_sixteen_sources_are_merged_by_the_kernel(method):
    sources = [inputs(method, (9, 40), torch.float16, seed=seed).sources[0] for seed in range(16)]
    base = inputs(method, (9, 40), torch.float16).base
    given = Inputs(base, tuple(sources), Place(0, "t", tuple(f"s{k}" for k in range(16))))
    knobs = {name: knob for name, knob in KNOBS[method].items() if not isinstance(knob, tuple)}
    knobs |= {name: 0.3 for name, knob in KNOBS[method].items() if isinstance(knob, tuple)}

    kernel, plain = both_sides(method, given, knobs, torch.float16)

    with kernels.backend("triton"):
        assert kernels.twin("combine", base.to(DEVICE), [source.to(DEVICE) for source in sources]) is not None
    assert_close(kernel, plain, rtol=1e-3, atol=1e-6)  # one step of float16, where a norm is measured


@pytest.mark.parametrize("normalize", [False, True])
def test_an_election_without_weights(normalize):
    knobs = {**KNOBS["dare_ties"], "variant": "paper", "normalize": normalize}

    kernel, plain = both_sides("dare_ties", inputs("dare_ties", (2000,)), knobs, torch.float32)

    assert torch.equal(kernel, plain)


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_is_seen_in_the_result(method):
    given = inputs(method, (2000,))
    given.sources[0][::50] = float("nan")

    kernel, _ = both_sides(method, given, KNOBS[method], torch.bfloat16)

    assert kernel[::50].isnan().all()


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_tensor_stays_empty(method):
    kernel, _ = both_sides(method, inputs(method, (0, 8)), KNOBS[method], None)

    assert kernel.shape == (0, 8)


def test_sources_may_lie_in_columns_and_have_several_dtypes():
    given = inputs("ties", (40, 30), torch.float32)
    odd = Inputs(given.base.T, (given.sources[0].T, given.sources[1].T.bfloat16(), given.sources[2].T.half()), given.place)

    kernel, plain = both_sides("ties", odd, KNOBS["ties"], torch.float32)

    assert_close(kernel, plain, rtol=1e-6, atol=1e-7)


def test_float64_stays_with_torch():
    with kernels.backend("triton"):
        assert not kernels.usable(torch.zeros(1, dtype=torch.float64))
        assert kernels.usable(torch.zeros(1))


def test_on_a_cpu_torch_is_taken_without_triton(monkeypatch):
    assert not kernels.usable(torch.zeros(1))

    monkeypatch.setattr(kernels, "available", lambda: False)
    with pytest.raises(MissingExtra, match="pip install triton"), kernels.backend("triton"):
        pass


def test_the_room_is_imported_without_triton():
    code = "import sys; sys.modules['triton'] = None; import evomerge.kernels, evomerge.methods.table"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_kernels_compile_for_a_gpu():
    code = Path(__file__).with_name("compile_for_gpu.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run([sys.executable, str(code)], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
def test_offsets_beyond_2_to_the_31():
    size = 2**31 + 1000
    source = torch.zeros(size, dtype=torch.bfloat16, device="cuda")
    source[-1000:] = 1.0

    merged = specification.combine(None, [source], [(2.0,)], subtract=False)

    assert merged[-1000:].eq(2).all()
    assert merged[-2000:-1000].eq(0).all()
