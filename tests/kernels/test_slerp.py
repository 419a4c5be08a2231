"""Lengths and angle by a kernel are those of plain torch."""

import pytest
import torch

from evomerge import kernels
from evomerge.methods.slerp import cosine_of, products, slerp

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def two(size, dtype, spread):
    generator = torch.Generator().manual_seed(size)
    a = torch.randn(size, generator=generator)
    return a.to(dtype).to(DEVICE), (a + spread * torch.randn(size, generator=generator)).to(dtype).to(DEVICE)


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
