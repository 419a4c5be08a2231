"""Random masks: the published generator, and a function of nothing but seed, names and position."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge import masks

# Random123's own known answers for philox4x32-10: counter, key, words
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

WORDS = [3478314596, 2918948257, 585070261, 4056029628, 3500573443, 534307596, 3521371327, 879465649]
WHOLE = masks.draw(12345, 0, 110_000)
UNIFORM = [min(word, 2**32 - 1 - word) / 2**31 for word in WORDS]


def from_hex(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_generator_gives_the_published_words(counter, key, expected):
    state = [np.array([word], np.uint64) for word in from_hex(counter)]

    words = masks.philox(state, from_hex(key))

    assert words.tolist() == [from_hex(expected)]


def test_positions_0_to_7_never_change():
    key = masks.key(0, "math", "model.norm.weight")

    assert key == 14674874481612510621  # sha256sum of [0, "math", "model.norm.weight"], first 8 bytes, little end first
    assert masks.words(key, 0, 8).tolist() == WORDS
    assert masks.uniform(0, "math", "model.norm.weight", 0, 8).tolist() == pytest.approx(UNIFORM, abs=1e-7)


def test_all_four_words_of_a_counter_are_used():
    assert masks.words(0, 0, 4).tolist() == from_hex(KNOWN[0][2])


@given(start=st.integers(0, 70_000), count=st.integers(0, 40_000))
@settings(max_examples=40, deadline=None)
def test_a_piece_is_a_piece_of_the_whole(start, count):
    assert torch.equal(masks.draw(12345, start, count), WHOLE[start : start + count])


def test_counters_go_on_past_32_bits():
    last = masks.words(7, 4 * (2**32 - 1), 8).tolist()

    low, high = np.array([2**32 - 1, 0], np.uint64), np.array([0, 1], np.uint64)
    expected = masks.philox([low, high, np.zeros(2, np.uint64), np.zeros(2, np.uint64)], [7, 0])
    assert last == expected.reshape(-1).tolist()


def test_numbers_are_uniform_below_one():
    numbers = masks.uniform(3, "code", "lm_head.weight", 0, 1_000_000).double()

    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * (1 / 12 / 1e6) ** 0.5
    shares = torch.histc(numbers, 100, 0, 1) / 1e6
    assert (shares - 0.01).abs().max() < 5 * (0.01 * 0.99 / 1e6) ** 0.5


def test_the_largest_word_stays_below_one(monkeypatch):
    monkeypatch.setattr(masks, "words", lambda *_: np.array([0, 2**31 - 1, 2**31, 2**32 - 1], np.uint32))

    assert masks.draw(0, 0, 4).tolist() == [0.0, 0.9999999403953552, 0.9999999403953552, 0.0]


@pytest.mark.parametrize("other", [(1, "ab", "c"), (0, "a", "bc"), (0, "abc", ""), (0, "c", "ab"), (10, "ab", "c")])
def test_seed_and_names_are_not_confused(other):
    assert masks.key(*other) != masks.key(0, "ab", "c")


def test_neighbouring_sources_and_tensors_are_independent():
    draws = [masks.uniform(0, s, t, 0, 100_000) for s, t in [("a", "x"), ("b", "x"), ("a", "y")]]

    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(3)
    assert correlations.abs().max() < 5 / 100_000**0.5


def test_a_smaller_rate_keeps_what_a_larger_one_keeps():
    drops = masks.Drops((0.3, 0.8), (5, 5), (1.0, 1.0))
    numbers = drops.uniform(0, 10_000)

    kept = numbers >= torch.tensor([[0.3], [0.8]])
    assert kept[0][kept[1]].all()
    assert kept.float().mean(1).tolist() == pytest.approx([0.7, 0.2], abs=0.02)
