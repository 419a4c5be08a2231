"""Thresholds by a kernel are those of plain torch, to the last position."""

import inspect

import numpy as np
import pytest
import torch

from evomerge import kernels
from evomerge.kernels import compiled
from evomerge.methods.threshold import BINS, Magnitudes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDES = [
    pytest.param(
        "native", marks=pytest.mark.skipif(compiled.functions() is None, reason="no C++ compiler"), id="native_without_triton"
    ),
    pytest.param("triton", id="triton"),
]
everywhere = pytest.mark.parametrize("side", SIDES)


def pair(size, dtype, side, *, subtract=True):
    """Many equal magnitudes, zeros, a few that are no numbers."""
    generator = torch.Generator().manual_seed(size)
    base = torch.randn(size, generator=generator) * 0.05 if subtract else None
    source = (base if subtract else 0) + 0.01 * torch.randn(size, generator=generator).bfloat16().float()
    source[::5] = base[::5] if subtract else 0.0
    source[::333] = float("inf")
    place = DEVICE if side == "triton" else "cpu"
    return None if base is None else base.to(dtype).to(place), source.to(dtype).to(place)


def magnitudes(base, source):
    def read(piece):
        delta = source[piece] if base is None else source[piece].to(wide) - base[piece].to(wide)
        return delta.float()

    wide = torch.float64 if source.dtype == torch.float64 else torch.float32
    return Magnitudes(read, source.numel(), pair=(base, source))


@everywhere
@pytest.mark.parametrize("size", [1, 63, 100, 2000, 128 * 1024 + 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("subtract", [True, False])
def test_tables_and_trims_are_those_of_torch(side, size, dtype, subtract):
    given = pair(size, dtype, side, subtract=subtract)
    densities = (0.001, 0.2, 0.21, 0.5, 0.95)

    found = {}
    for name in (side, "torch"):
        with kernels.backend(name):
            vector = magnitudes(*given)
            found[name] = vector.table.counts, [vector.trim(density) for density in densities]

    assert np.array_equal(found[side][0], found["torch"][0])
    for one, other in zip(found[side][1], found["torch"][1], strict=True):
        assert (one.magnitude, one.last) == (other.magnitude, other.last)
        assert np.array_equal(one.excess, other.excess)


@everywhere
def test_an_empty_tensor_has_an_empty_table(side):
    with kernels.backend(side):
        assert magnitudes(*pair(0, torch.float32, side)).table.size == 0


@everywhere
def test_the_tensors_may_have_gaps(side):
    base, source = pair(2000, torch.float32, side)

    with kernels.backend(side):
        gaps = magnitudes(base[::2], source[::2]).trim(0.3)
        dense = magnitudes(base[::2].contiguous(), source[::2].contiguous()).trim(0.3)

    assert (gaps.magnitude, gaps.last) == (dense.magnitude, dense.last)


def test_the_sides_count_in_the_same_bins_without_triton():
    from evomerge.kernels import native

    assert native.BINS == BINS


def test_the_kernel_counts_in_the_same_bins():
    from evomerge.kernels import threshold

    assert threshold.BINS == BINS


@pytest.mark.parametrize("name", ["counts", "members"])
def test_both_sides_are_asked_alike(name):
    from evomerge.kernels import native, threshold

    assert inspect.signature(getattr(native, name)) == inspect.signature(getattr(threshold, name))


@pytest.mark.parametrize("block", [4, 64, 1024])
def test_members_of_many_blocks_come_in_order(block, monkeypatch):
    from evomerge.kernels import combine, threshold

    monkeypatch.setattr(combine, "BLOCK", block)
    base, source = pair(3000, torch.bfloat16, "triton")
    counts = threshold.counts(base, source)
    bin = int(counts[1:-200].argmax()) + 1

    sizes, positions = threshold.members(base, source, bin, int(counts[bin]))

    delta = (source.float() - base.float()).abs().cpu()
    expected = np.flatnonzero((delta.view(torch.int32) >> 16).numpy() == bin)
    assert np.array_equal(positions, expected)
    assert np.array_equal(sizes, delta.numpy()[expected])


@pytest.mark.gpu
def test_positions_beyond_2_to_the_31():
    source = torch.zeros(2**31 + 1000, dtype=torch.bfloat16, device="cuda")
    source[-3:] = torch.tensor([1.0, 2.0, 1.0])

    with kernels.backend("triton"):
        trim = magnitudes(None, source).trim(2 / source.numel())

    assert (trim.magnitude, trim.last, trim.excess.tolist()) == (1.0, 2**31 + 997, [2**31 + 999])
