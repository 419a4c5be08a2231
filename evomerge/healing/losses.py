"""How far a student is from its teacher, token by token, from the log-probabilities of both.

All take and give [..., vocabulary] → [...]; float32 in, float32 out. The factor T² that keeps gradients alike at every
temperature belongs to whoever chose T.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ p_T·log(p_T / p_S): the student must cover everything that the teacher would say."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ p_S·log(p_S / p_T): the student may keep to one of the things that the teacher would say."""
    return forward_kl(teacher, student)


def jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """[β·KL(p_T‖M) + (1-β)·KL(p_S‖M)] / β(1-β) with M = β·p_T + (1-β)·p_S; forward KL at β = 0, reverse KL at β = 1.

    The generalised JSD of Agarwal et al. 2024 (GKD), which vanishes towards both ends; the division makes it continuous
    there, so that β is no hidden learning rate.
    """
    if beta in (0.0, 1.0):
        return reverse_kl(student, teacher) if beta else forward_kl(student, teacher)
    mixed = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return forward_kl(mixed, teacher) / (1 - beta) + forward_kl(mixed, student) / beta
