"""The trim keeps exactly what sorting would, at every density."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.masks import Trim
from evomerge.methods import threshold
from evomerge.methods.combine import Deltas
from evomerge.methods.threshold import Magnitudes, Table, count, thresholds


def magnitudes(delta: torch.Tensor, resident: bool = False) -> Magnitudes:
    return Magnitudes(lambda piece: delta[piece], len(delta), resident=resident)


def kept(delta: torch.Tensor, trim: Trim) -> torch.Tensor:
    """Where the trim leaves the delta: by combine, and by the rule that a kernel follows."""
    by_combine = Deltas(None, [delta], [trim], subtract=False).kept(slice(0, len(delta)))[0] != 0
    size, position = delta.abs(), torch.arange(len(delta))
    by_rule = (size > trim.magnitude) | ((size == trim.magnitude) & (position <= trim.last))
    assert torch.equal(by_combine, by_rule & (delta != 0))
    return by_rule


def largest(delta: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest by a stable sort: at equal magnitudes the lower position."""
    mask = torch.zeros(len(delta), dtype=torch.bool)
    mask[torch.sort(delta.abs(), descending=True, stable=True).indices[:k]] = True
    return mask


VALUES = {
    "all different": torch.randn(3000, generator=torch.Generator().manual_seed(0)),
    "bfloat16, many equal": (torch.randn(3000, generator=torch.Generator().manual_seed(1)) * 0.01).bfloat16().float(),
    "all equal": torch.full((100,), -0.25),
    "two magnitudes": torch.tensor([1.0, -1.0, 2.0, 1.0] * 25),
    "half of it zero": torch.tensor([0.0, 3.0] * 40),
    "denormal and huge": torch.tensor([1e-45, 3e38, 1e-40, -1e-42, 1.0, -3e38, 0.0]),
    "one": torch.tensor([0.5]),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("density", [1e-9, 0.01, 0.2, 0.25, 0.5, 0.75, 0.999, 1.0])
def test_exactly_the_largest_are_kept(name, resident, density):
    delta = VALUES[name]

    mask = kept(delta, magnitudes(delta, resident).trim(density))

    k = max(1, int(density * len(delta)))
    assert mask.sum() == k or (delta[mask != largest(delta, k)] == 0).all()
    assert torch.equal(mask & (delta != 0), largest(delta, k) & (delta != 0))


@given(st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, 1.00390625, -3.0]), min_size=1, max_size=60), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_ties_in_any_pattern(values, density):
    delta = torch.tensor(values)

    mask = kept(delta, magnitudes(delta).trim(density)) & (delta != 0)

    assert torch.equal(mask, largest(delta, count(density, len(values))) & (delta != 0))


def test_density_0_keeps_nothing():
    assert not kept(VALUES["two magnitudes"], magnitudes(VALUES["two magnitudes"]).trim(0.0)).any()


def test_several_tensors_are_trimmed_as_one():
    whole = VALUES["bfloat16, many equal"]
    parts = whole.split([1, 999, 0, 1500, 500])

    for density in (0.001, 0.1, 0.37, 0.8, 1.0):
        trims = thresholds([magnitudes(part) for part in parts], density)
        together = torch.cat([kept(part, trim) for part, trim in zip(parts, trims, strict=True)])
        assert torch.equal(together, largest(whole, count(density, len(whole))))


def test_a_tensor_whose_equals_come_too_late_keeps_none_of_them():
    first, second = torch.tensor([2.0, 1.0, 1.0]), torch.tensor([1.0, -3.0, 1.0])

    trims = thresholds([magnitudes(first), magnitudes(second)], 0.5)  # 2, -3 and one of the four

    assert kept(first, trims[0]).tolist() == [True, True, False]
    assert kept(second, trims[1]).tolist() == [False, True, False]


def test_tables_merge():
    parts = VALUES["all different"].split(1000)

    merged = Table.merge([magnitudes(part).table for part in parts])

    whole = magnitudes(VALUES["all different"]).table
    assert np.array_equal(merged.bins, whole.bins)
    assert np.array_equal(merged.upto, whole.upto)


def test_pieces_change_nothing(monkeypatch):
    delta = VALUES["bfloat16, many equal"]
    whole = [magnitudes(delta).trim(density) for density in (0.1, 0.5)]

    monkeypatch.setattr(threshold, "PIECE", 97)
    pieces = [magnitudes(delta).trim(density) for density in (0.1, 0.5)]

    for one, other in zip(whole, pieces, strict=True):
        assert (one.magnitude, one.last) == (other.magnitude, other.last)
        assert np.array_equal(one.excess, other.excess)


def test_a_task_vector_is_read_once_for_all_densities():
    reads = []
    delta = VALUES["all different"]
    vector = Magnitudes(lambda piece: reads.append(piece) or delta[piece], len(delta))
    vector.trim(0.5)
    before = len(reads)

    vector.trim(0.5)
    vector.trim(0.5001)

    assert len(reads) == before  # the second falls into the same bin


def test_magnitudes_are_compared_as_float32():
    delta = torch.tensor([1.0, 1.0 + 1e-12, 1.0 - 1e-12, 0.5], dtype=torch.float64)
    vector = Magnitudes(lambda piece: delta[piece].float(), 4)

    left = Deltas(None, [delta], [vector.trim(0.5)], subtract=False).kept(slice(0, 4))

    assert left.tolist() == [[1.0, 1.0 + 1e-12, 0.0, 0.0]]  # all three are 1 in float32: the lower positions stay


def test_what_float32_rounds_away_is_dropped():
    delta = torch.tensor([1.0, 1.0 - 4e-8], dtype=torch.float64)  # in float32 the second is 1 - 6e-8
    vector = Magnitudes(lambda piece: delta[piece].float(), 2)

    left = Deltas(None, [delta], [vector.trim(0.5)], subtract=False).kept(slice(0, 2))

    assert left.tolist() == [[1.0, 0.0]]
