"""Inner products, sums with coefficients for each row, and ranks by a kernel are those of plain torch."""

import inspect

import pytest
import torch

from evomerge import kernels
from evomerge.kernels import compiled
from evomerge.methods import della, vectors
from evomerge.methods.combine import Deltas
from evomerge.methods.slerp import cosine_of, products, slerp

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def two(size, dtype, spread):
    generator = torch.Generator().manual_seed(size)
    a = torch.randn(size, generator=generator)
    return a.to(dtype).to(DEVICE), (a + spread * torch.randn(size, generator=generator)).to(dtype).to(DEVICE)


needs_compiler = pytest.mark.skipif(compiled.functions() is None, reason="no C++ compiler")
SIDES = [pytest.param("native", marks=needs_compiler, id="native_without_triton"), pytest.param("triton", id="triton")]
everywhere = pytest.mark.parametrize("side", SIDES)


def several(count, shape, dtype, side):
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(shape, generator=generator)
    place = DEVICE if side == "triton" else "cpu"
    sources = [(base + 0.1 * torch.randn(shape, generator=generator)).to(dtype).to(place) for _ in range(count)]
    return base.to(dtype).to(place), sources


@everywhere
@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (9, 7)), (3, (40, 63)), (16, (3, 600))], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("subtract", [True, False])
def test_inner_products_of_tensors_and_rows(side, count, shape, dtype, subtract):
    base, sources = several(count, shape, dtype, side)
    exact = torch.stack([s.float() - base.float() if subtract else s.float() for s in sources]).double()  # [K, R, C]

    with kernels.backend(side):
        deltas = Deltas(base, sources, None, subtract)
        whole, rows = vectors.gram(deltas), vectors.gram_of_rows(deltas, shape[1])

    torch.testing.assert_close(whole, exact.view(count, -1) @ exact.view(count, -1).T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rows, torch.einsum("irc,jrc->rij", exact, exact), rtol=1e-12, atol=1e-12)


@everywhere
def test_inner_products_of_a_tensor_larger_than_a_stretch(side, monkeypatch):
    from evomerge.kernels import combine, native

    monkeypatch.setattr(combine, "BLOCK", 64)
    monkeypatch.setattr(native, "SHARE", 1000)
    base, sources = several(3, (4001,), torch.bfloat16, side)
    exact = torch.stack([s.float() - base.float() for s in sources]).double()

    with kernels.backend(side):
        found = vectors.gram(Deltas(base, sources, None, True))

    torch.testing.assert_close(found, exact @ exact.T, rtol=1e-12, atol=1e-12)


@everywhere
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("based", [True, False])
def test_coefficients_for_each_row_have_the_bits_of_torch(side, dtype, based):
    base, sources = several(3, (40, 63), torch.bfloat16, side)
    coefficients = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(base.device)
    deltas = Deltas(base if based else None, sources, None, based)

    merged = {}
    for name in (side, "torch"):
        with kernels.backend(name):
            merged[name] = vectors.mix_rows(deltas, 63, coefficients, base.shape, dtype)

    assert torch.equal(merged[side], merged["torch"])


@needs_compiler
@pytest.mark.parametrize("width", [1, 7, 300, 40_000])  # the last one's ranks do not fit into 16 bits
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_ranks_are_those_of_torch_without_triton(width, dtype):
    base, (source,) = several(1, (2, width), dtype, "native")
    source[0, ::3] = base[0, ::3]  # equal magnitudes
    source[1, ::5] = float("nan")

    found = {}
    for side in ("native", "torch"):
        with kernels.backend(side):
            found[side] = della.ranks(base, source, width)

    assert torch.equal(found["native"], found["torch"])


@pytest.mark.parametrize("name", ["gram", "gram_of_rows", "mix_rows"])
def test_both_sides_take_the_same_arguments(name):
    from evomerge.kernels import native
    from evomerge.kernels import vectors as triton

    assert inspect.signature(getattr(native, name)) == inspect.signature(getattr(triton, name))


@pytest.mark.parametrize("size", [1, 63, 100, 2000, 128 * 1024 + 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_products_are_summed_in_float64(size, dtype, spread):
    a, b = two(size, dtype, spread)

    with kernels.backend("triton"):
        fused = products(a, b)

    x, y = a.double(), b.double()
    assert fused == pytest.approx((float(x @ x), float(x @ y), float(y @ y)), rel=1e-12, abs=1e-12)


def test_both_passes_are_the_specification():
    a, b = two(5000, torch.bfloat16, 1.0)

    merged = []
    for side in ("triton", "torch"):
        with kernels.backend(side):
            merged.append(slerp(a, b, [0.3], dtype=torch.float32))

    assert torch.allclose(*merged, rtol=1e-6, atol=1e-7)


def test_an_empty_tensor_and_one_with_gaps():
    a, b = two(100, torch.float32, 1.0)

    with kernels.backend("triton"):
        assert cosine_of(a[:0], b[:0]) == 0
        assert cosine_of(a[::2], b[::2]) == pytest.approx(cosine_of(a[::2].clone(), b[::2].clone()), rel=1e-12)


@pytest.mark.gpu
def test_the_end_of_a_tensor_beyond_2_to_the_31_is_seen():
    a = torch.zeros(2**31 + 1000, dtype=torch.bfloat16, device="cuda")
    a[-2:] = 3.0

    with kernels.backend("triton"):
        assert products(a, a) == (18.0, 18.0, 18.0)
