"""What would stand at a place of the sorted values, to the bit, without sorting them."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.methods import ranked as module
from evomerge.methods.ranked import ranked

GENERATOR = torch.Generator().manual_seed(0)
VALUES = {
    "of both signs": torch.randn(5000, generator=GENERATOR),
    "many equal": (torch.randn(5000, generator=GENERATOR) * 3).round().abs(),
    "nearly all zero": torch.where(torch.rand(5000, generator=GENERATOR) < 0.01, 1e-30, 0.0),
    "alike in their first 16 bits": 1 + torch.rand(5000, generator=GENERATOR) * 2**-12,
    "denormal and huge": torch.tensor([1e-45, 3e38, 1e-40, -1e-42, 1.0, -3e38, 0.0, float("inf"), -float("inf")]),
    "one": torch.tensor([-0.5]),
    "not all numbers": torch.tensor([1.0, float("nan"), -2.0, -float("nan"), 3.0]),
}


def bits(numbers):
    return [struct.pack("d", number) for number in numbers]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("piece", [module.PIECE, 7])
def test_the_places_are_those_of_a_partition(name, dtype, piece, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)
    values = VALUES[name].to(dtype)[:: 1 if piece > 7 else 50]
    places = [int(q * (len(values) - 1)) for q in (0, 0.25, 0.5, 0.75, 1)]

    found = ranked(values, places)

    expected = np.partition(values.numpy(), places)[places].tolist()
    assert np.array_equal(found, expected, equal_nan=True)
    assert bits(n for n in found if n == n) == bits(n for n in expected if n == n)


@given(st.lists(st.floats(width=32, allow_nan=False).filter(bool), min_size=1, max_size=40), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_any_place_of_any_numbers(numbers, share):
    place = int(share * (len(numbers) - 1))

    assert ranked(torch.tensor(numbers), [place]) == [sorted(numbers)[place]]
