"""The kept-th largest magnitude by a sample and one pass: the table's own answer, or none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.kernels import compiled, select
from evomerge.methods.combine import Deltas
from evomerge.methods.threshold import Magnitudes

pytestmark = pytest.mark.skipif(compiled.functions() is None, reason="no C++ compiler")
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def pair(size, dtype, *, step=0.001, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = 0.02 * torch.randn(size, generator=generator)
    return base.to(dtype), (base + step * torch.randn(size, generator=generator)).to(dtype)


def magnitudes(base, source, **rest):
    def read(piece):
        return Deltas(base, [source], None, subtract=True).whole(piece)[0].float()

    return Magnitudes(read, source.numel(), pair=(base, source), **rest)


def same(one, other):
    """Where zeros are kept none is told from another: keeping them adds nothing."""
    return one.magnitude == other.magnitude == 0 or (
        (one.magnitude, one.last) == (other.magnitude, other.last) and np.array_equal(one.excess, other.excess)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [1e-6, 0.2, 0.5, 0.999])
def test_of_a_million_elements_no_table_is_made(dtype, density):
    tensors = pair(select.LEAST + 7, dtype)
    passing, kept = magnitudes(*tensors), magnitudes(*tensors, memory={})

    assert same(passing.trim(density), kept.trim(density))
    assert "table" not in passing._memory
    assert "table" in kept._memory


@given(
    st.sampled_from(DTYPES), st.integers(2, 5000), st.floats(0, 1), st.sampled_from([1e-5, 1e-3, 0.1]), st.integers(0, 99),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_whatever_the_sample_says_the_trim_is_the_exact_one(dtype, size, density, step, seed, equal):
    base, source = pair(size, dtype, step=step, seed=seed)
    if equal:
        source[: size // 2] = base[: size // 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "LEAST", 2)
        patch.setattr(select, "SAMPLE", (16, 64))  # so few that it often misleads
        found = magnitudes(base, source).trim(density)

    assert same(found, magnitudes(base, source, memory={}).trim(density))


def test_a_delta_of_zeros_takes_no_memory_for_their_positions():
    base = torch.zeros(select.LEAST)
    source = base.clone()
    source[[5, -7]] = torch.tensor([2.0, -3.0])

    magnitude, equal, room = select.largest(base, base, 10)

    assert (magnitude, len(equal), room) == (0.0, 0, 0)
    for density in (0.2, 0.9):
        trim = magnitudes(base, source).trim(density)
        assert (trim.magnitude, trim.floor, len(trim.excess)) == (0.0, 0.0, 0)


def test_where_nearly_all_are_equal_it_does_not_say():
    base = torch.zeros(select.LEAST)

    assert select.largest(base, base + 1, select.LEAST // 2) is None
    assert same(magnitudes(base, base + 1).trim(0.5), magnitudes(base, base + 1, memory={}).trim(0.5))
