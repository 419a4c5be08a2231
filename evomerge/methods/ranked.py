"""The elements of a tensor at given places of its order, exactly, without sorting or copying it: digit by digit, from the top.

Floats are compared as integers whose order is theirs. Each pass counts 16 bits of those that agree with what is known so far.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch
from torch import Tensor

DIGIT = 16  # bits counted at a time
PIECE = 1 << 20  # elements at a time
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def ranked(values: Tensor, places: Sequence[int]) -> list[float]:
    """What would stand at these places, from 0, if the [N] float32 or float64 values were sorted; NaN is behind all numbers."""
    bits = 8 * values.itemsize
    known, left = [0] * len(places), list(places)  # the digits of each so far, as one number, and its place among those like it
    for shift in range(bits - DIGIT, -1, -DIGIT):
        first = shift == bits - DIGIT
        counts = {prefix: torch.zeros(1 << DIGIT, dtype=torch.int64, device=values.device) for prefix in known}
        for start in range(0, len(values), PIECE):
            keys = _ordered(values[start : start + PIECE])
            for prefix, counted in counts.items():
                alike = keys if first else keys[keys >> (shift + DIGIT) == prefix]
                counted += torch.bincount(_digits(alike, shift, first), minlength=1 << DIGIT)
        upto = {prefix: counted.cumsum(0).tolist() for prefix, counted in counts.items()}
        for i, prefix in enumerate(known):
            digit = bisect.bisect_right(upto[prefix], left[i])
            left[i] -= upto[prefix][digit - 1] if digit else 0
            known[i] = digit - (1 << DIGIT - 1) if first else prefix << DIGIT | digit
    return _floats(torch.tensor(known, dtype=INTEGERS[values.dtype]), values.dtype).tolist()


def _ordered(values: Tensor) -> Tensor:
    """Integers in the order of the floats: of what is negative all bits but the sign are turned round."""
    keys = values.view(INTEGERS[values.dtype])
    top = torch.iinfo(keys.dtype).max
    return (keys ^ (keys >> 8 * keys.itemsize - 1 & top)).masked_fill_(values.isnan(), top)


def _digits(keys: Tensor, shift: int, first: bool) -> Tensor:
    """16 bits of each, from 0; the topmost have a sign."""
    return (keys >> shift) + (1 << DIGIT - 1) if first else keys >> shift & (1 << DIGIT) - 1


def _floats(keys: Tensor, dtype: torch.dtype) -> Tensor:
    top = torch.iinfo(keys.dtype).max
    return (keys ^ (keys >> 8 * keys.itemsize - 1 & top)).view(dtype)
