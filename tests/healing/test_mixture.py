"""Several teachers as one distribution, and what they remember."""

import pytest
import torch
from torch.testing import assert_close

from evomerge.healing.mixture import Teacher, mixture


class Untouchable(dict):
    """Teachers of which one must not even be looked up."""

    def __missing__(self, name):
        raise AssertionError(f"{name} was asked")


def probabilities(model, rows, temperature=1.0):
    with torch.no_grad():
        return (model(input_ids=rows).logits.double() / temperature).softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_mixture_is_the_weighted_mean_of_probabilities(llama, rows, temperature):
    a, b = llama(1), llama(2)

    mixed = mixture({"a": Teacher(a), "b": Teacher(b)}, {"a": 1.0, "b": 3.0}, rows[:4], temperature)

    expected = 0.25 * probabilities(a, rows[:4], temperature) + 0.75 * probabilities(b, rows[:4], temperature)
    assert_close(mixed.exp().double(), expected, atol=1e-6, rtol=1e-5)


def test_only_the_ratio_of_the_shares_counts(llama, rows):
    teachers = {"a": Teacher(llama(1)), "b": Teacher(llama(2))}

    half = mixture(teachers, {"a": 0.5, "b": 0.5}, rows[:2], 1.0)

    assert torch.equal(half, mixture(teachers, {"a": 8.0, "b": 8.0}, rows[:2], 1.0))


def test_a_teacher_without_a_share_is_not_asked(llama, rows):
    teachers = Untouchable(a=Teacher(llama(1)))

    mixed = mixture(teachers, {"a": 0.3, "b": 0.0}, rows[:2], 1.0)

    assert_close(mixed.exp().double(), probabilities(teachers["a"].model, rows[:2]), atol=1e-6, rtol=1e-5)


def test_by_likelihood_each_token_is_taught_by_whoever_expected_the_next(llama, rows):
    a, b = llama(1), llama(2)

    mixed = mixture({"a": Teacher(a), "b": Teacher(b)}, {"a": 1.0, "b": 3.0}, rows[:1], 2.0, "likelihood")[0].exp().double()

    sharp_a, sharp_b = probabilities(a, rows[:1])[0], probabilities(b, rows[:1])[0]
    soft_a, soft_b = probabilities(a, rows[:1], 2.0)[0], probabilities(b, rows[:1], 2.0)[0]
    heard_a, heard_b = sharp_a[4, rows[0, 5]], 3 * sharp_b[4, rows[0, 5]]
    assert_close(mixed[4], (heard_a * soft_a[4] + heard_b * soft_b[4]) / (heard_a + heard_b), atol=1e-6, rtol=1e-4)
    assert_close(mixed[-1], 0.25 * soft_a[-1] + 0.75 * soft_b[-1], atol=1e-6, rtol=1e-4)  # nothing follows


def test_a_teacher_remembers_what_it_said(llama, rows):
    teacher = Teacher(llama(1))
    first = teacher.logits(rows[:4])
    teacher.model = None  # whoever asks it again fails

    assert teacher.logits(rows[:4].clone()) is first


def test_memory_is_bounded_and_forgetting_changes_nothing(llama, rows):
    size = 4 * 16 * 20 * 4  # rows x length x vocabulary x bytes
    short, full = Teacher(llama(1), memory=size), Teacher(llama(1))

    for _ in range(2):
        for batch in rows[:12].split(4):
            assert torch.equal(short.logits(batch), full.logits(batch))

    assert (len(short.said), short.free) == (1, 0)
    assert len(full.said) == 3
