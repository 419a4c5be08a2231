"""Losses against hand computations in float64, and their limits."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from evomerge.healing.losses import forward_kl, jsd, reverse_kl

STUDENT = [[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]
TEACHER = [[0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]


def logs(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities).log()


def kl_by_hand(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def some(seed: int) -> Tensor:
    return (3 * torch.randn(5, 7, 100, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def test_forward_kl_is_the_formula_for_each_token():
    assert_close(forward_kl(logs(STUDENT), logs(TEACHER)), torch.tensor([0.794160, 0.0]), atol=1e-6, rtol=0)  # from float64


def test_reverse_kl_is_the_formula_for_each_token():
    expected = [kl_by_hand(STUDENT[0], TEACHER[0]), 0.0]

    assert_close(reverse_kl(logs(STUDENT), logs(TEACHER)), torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_is_the_formula_divided_by_what_vanishes_at_its_ends(beta):
    mixed = [beta * t + (1 - beta) * s for s, t in zip(STUDENT[0], TEACHER[0], strict=True)]
    plain = beta * kl_by_hand(TEACHER[0], mixed) + (1 - beta) * kl_by_hand(STUDENT[0], mixed)

    assert jsd(logs(STUDENT), logs(TEACHER), beta)[0].item() == pytest.approx(plain / (beta * (1 - beta)), abs=1e-6)


@pytest.mark.parametrize(("beta", "end"), [(1e-3, forward_kl), (0.0, forward_kl), (1 - 1e-3, reverse_kl), (1.0, reverse_kl)])
def test_jsd_ends_in_the_two_kls_without_a_step(beta, end):
    assert_close(jsd(logs(STUDENT), logs(TEACHER), beta), end(logs(STUDENT), logs(TEACHER)), atol=1e-3, rtol=2e-3)


@pytest.mark.parametrize("loss", [forward_kl, reverse_kl, lambda s, t: jsd(s, t, 0.3)])
def test_no_loss_is_negative_and_all_are_zero_at_the_teacher_itself(loss):
    assert loss(some(0), some(1)).min() > 0
    assert loss(some(0), some(0)).abs().max() < 1e-6


def test_losses_agree_with_float64_to_the_precision_of_float32():
    exact = forward_kl(some(0).double(), some(1).double())

    assert_close(forward_kl(some(0), some(1)).double(), exact, rtol=1e-5, atol=1e-6)
