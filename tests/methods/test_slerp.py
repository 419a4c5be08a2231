import math

import pytest
import torch
from torch.testing import assert_close

from evomerge.methods.slerp import slerp


def test_the_ends_are_the_models():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])

    assert_close(slerp(a, b, [0.0]), a)
    assert_close(slerp(a, b, [1.0]), b)


def test_half_way_between_orthogonal_vectors():
    merged = slerp(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]), [0.5])

    assert_close(merged, torch.tensor([3.0, 4.0]) * math.sqrt(0.5))  # sin 45° / sin 90°


def test_the_length_stays_on_the_way():
    a, far = torch.eye(3, dtype=torch.float64)[0], torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    near = torch.tensor([0.9994, math.sqrt(1 - 0.9994**2), 0.0], dtype=torch.float64)

    for t in (0.1, 0.5, 0.7):
        assert slerp(a, far, [t]).norm() == pytest.approx(1, abs=1e-9)
        assert slerp(a, near, [t]).norm() == pytest.approx(1, abs=1e-9)  # the line would be up to 1.5e-4 short


@pytest.mark.parametrize("b", [[2.0, 0.0], [1.0, 0.01], [-1.0, 0.01], [0.0, 0.0]])
def test_nearly_parallel_opposite_or_zero(b):
    a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor(b).double()

    merged = slerp(a, b, [0.25])

    zero = not b.any()  # orthogonal to all: ω is a right angle
    expected = math.sin(0.75 * math.pi / 2) * a if zero else 0.75 * a + 0.25 * b
    assert_close(merged, expected)


def test_each_group_of_rows_has_its_own_t_on_the_arc_of_the_whole():
    a, b = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double(), torch.ones(4, 3).double()

    merged = slerp(a, b, [0.2, 0.9])

    assert_close(merged[:2], slerp(a, b, [0.2])[:2])
    assert_close(merged[2:], slerp(a, b, [0.9])[2:])
