"""Inputs and knobs that the tests of the methods share."""

import torch

from evomerge.methods.inputs import Inputs, Place

NAMES = ("math", "code", "chat", "law")
KNOBS = {
    "linear": {"weight": (0.5, 0.25, 0.75)},
    "task_arithmetic": {"weight": (0.5, -0.3, 0.9), "lambda": 0.8},
    "slerp": {"t": 0.3},
    "ties": {"weight": (0.5, 1.2, 0.9), "density": (0.3, 0.5, 1.0), "lambda": 0.7},
    "dare_linear": {"weight": (0.5, 0.4, 0.9), "drop_rate": (0.5, 0.9, 0.0)},
    "dare_ties": {"weight": (0.5, 0.4, 0.9), "drop_rate": (0.5, 0.9, 0.0)},
    "passthrough": {"scale": 0.9},
}
# the same methods with everything else said otherwise than by default
OTHERWISE = {
    "linear": {"weight": (0.5, -0.25, 0.75), "normalize": False},
    "task_arithmetic": {"weight": (0.5, 0.3, 0.9), "lambda": -1.5, "normalize": True},
    "slerp": {"t": 0.9},
    "ties": {"weight": (0.5, -1.2, 0.9), "density": (0.01, 0.0, 0.7), "lambda": -1.0, "normalize": False},
    "dare_linear": {"weight": (0.5, 0.4, 0.9), "drop_rate": (0.5, 0.9, 0.1), "normalize": True, "variant": "paper"},
    "dare_ties": {"weight": (0.5, 0.4, 0.9), "drop_rate": (0.5, 0.9, 0.1), "normalize": True, "rescale": False},
    "passthrough": {},
}
ONE_SOURCE = ("slerp", "passthrough")


def inputs(method: str, shape=(100,), dtype=torch.bfloat16, *, resident=False, seed=0, spread=0.01, count=3) -> Inputs:
    """A base and sources near it, as fine-tunes are; one source where the method takes one."""
    count = 1 if method in ONE_SOURCE else count
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.05
    sources = [base + spread * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    place = Place(seed, "t", NAMES[:count])
    return Inputs(base.to(dtype), tuple(source.to(dtype) for source in sources), place, resident)
