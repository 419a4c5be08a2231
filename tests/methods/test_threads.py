"""The number of threads changes no bit of any method, on the compiled side and in plain torch."""

import pytest
import torch

from evomerge import kernels
from evomerge.methods.inputs import Inputs, Place
from evomerge.methods.table import METHODS, merge_tensor
from evomerge.recipe import COUNTS
from tests.methods.cases import KNOBS

DECOMPOSED = ("tsvm", "iso_c")  # by LAPACK, which promises nothing of the kind
SHAPE = (200, 250)  # what is summed at a time is longer than what torch gives to one thread
SIDES = ("native", "torch") if kernels.side(torch.empty(1)) == "native" else ("torch",)


def merged(method, dtype, side, threads):
    """Of as few sources as the method takes: torch divides a sum among threads where it has a single result."""
    count, generator = COUNTS.get(method, (1, 1))[0], torch.Generator().manual_seed(0)
    base, *moves = (torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(1 + count))
    knobs = {name: value[:count] if isinstance(value, tuple) else value for name, value in KNOBS[method].items()}
    place = Place(0, "t", ("a", "b")[:count])
    torch.set_num_threads(threads)
    with kernels.backend(side):
        return merge_tensor(method, Inputs(base, tuple(base + 0.01 * move for move in moves), place), knobs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [method for method in METHODS if method not in DECOMPOSED])
def test_threads_change_no_bit(method, dtype):
    before = torch.get_num_threads()
    try:
        for side in SIDES:
            assert torch.equal(merged(method, dtype, side, 1), merged(method, dtype, side, 2)), side
    finally:
        torch.set_num_threads(before)
