"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024).

Written out in float32 and batched over the matrices of one shape, because a bfloat16 Newton-Schulz is slow on a CPU.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon:
    """`step` moves every matrix along its orthogonalised momentum and forgets the gradients."""

    def __init__(self, matrices: Iterable[Tensor], momentum: float = 0.95) -> None:
        self.momentum = momentum
        self.groups: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            self.groups[(min(matrix.shape), max(matrix.shape))].append(matrix)
        self.buffers = {shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for shape, group in self.groups.items():
            gradient = torch.stack([_wide(matrix.grad) for matrix in group if matrix.grad is not None])
            buffer = self.buffers[shape].mul_(self.momentum).add_(gradient)
            updates = orthogonalise(gradient + self.momentum * buffer)  # Nesterov
            for matrix, update in zip(group, updates, strict=True):
                rows, columns = matrix.shape
                stretch = max(1.0, rows / columns) ** 0.5
                matrix.sub_(update if rows <= columns else update.T, alpha=lr * stretch)
                matrix.grad = None


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """About U·Vᵀ of each wide matrix in the stack, by a quintic Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    x: Tensor = stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)  # [n, rows, columns]
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
