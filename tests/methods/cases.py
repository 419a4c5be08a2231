"""Inputs and knobs that the tests of the methods share."""

import torch

from evomerge.methods.inputs import Inputs, Place
from evomerge.recipe import COUNTS

NAMES = ("math", "code", "chat", "law")
KNOBS = {
    "linear": {"weight": (0.5, 0.25, 0.75)},
    "task_arithmetic": {"weight": (0.5, -0.3, 0.9), "lambda": 0.8},
    "slerp": {"t": 0.3},
    "ties": {"weight": (0.5, 1.2, 0.9), "density": (0.3, 0.5, 1.0), "lambda": 0.7},
    "dare_linear": {"weight": (0.5, 0.4, 0.9), "drop_rate": (0.5, 0.9, 0.0)},
    "dare_ties": {"weight": (0.5, 0.4, 0.9), "drop_rate": (0.5, 0.9, 0.0)},
    "della": {"weight": (0.5, 1.2, 0.9), "density": (0.3, 0.5, 0.8), "epsilon": 0.15, "lambda": 0.7},
    "della_linear": {"weight": (0.5, 0.4, 0.9), "density": (0.3, 0.5, 1.0), "epsilon": (0.1, 0.2, 0.3)},
    "breadcrumbs": {"weight": (0.5, 0.4, 0.9), "density": (0.3, 0.5, 1.0), "gamma": 0.05},
    "breadcrumbs_ties": {"weight": (0.5, 1.2, 0.9), "density": (0.3, 0.5, 0.9), "gamma": (0.1, 0.01, 0.3), "lambda": 0.7},
    "model_stock": {},
    "nuslerp": {"weight": (0.5, 1.2)},
    "multislerp": {"weight": (0.5, 1.2, 0.9)},
    "karcher": {},
    "sce": {"select_topk": 0.7},
    "nearswap": {"t": 0.004},
    "arcee_fusion": {},
    "ram": {"epsilon": 0.005},
    "ramplus_tl": {"epsilon": 0.005},
    "tsvm": {"lambda": 0.8},
    "iso_c": {"lambda": 1.3},
    "fedavg": {"weight": (100, 250, 75), "clip_norm": 0.1},
    "fisher": {"weight": (0.5, 0.25, 0.75)},  # with what was measured: test_measured.py
    "regmean": {"weight": (0.5, 0.25, 0.75)},
    "passthrough": {"scale": 0.9},
}
# the same methods with everything else said otherwise than by default
OTHERWISE = {
    "linear": {"weight": (0.5, -0.25, 0.75), "normalize": False},
    "task_arithmetic": {"weight": (0.5, 0.3, 0.9), "lambda": -1.5, "normalize": True},
    "slerp": {"t": 0.9, "variant": "paper"},
    "ties": {"weight": (0.5, -1.2, 0.9), "density": (0.01, 0.0, 0.7), "lambda": -1.0, "normalize": False, "rescale": True},
    "dare_linear": {"weight": (0.5, 0.4, 0.9), "drop_rate": (0.5, 0.9, 0.1), "normalize": True, "variant": "paper"},
    "dare_ties": {"weight": (0.5, 0.4, 0.9), "drop_rate": (0.5, 0.9, 0.1), "normalize": True, "rescale": False},
    "della": {"weight": (0.5, -0.4, 0.9), "density": (0.3, 0.05, 0.0), "epsilon": 0.2, "variant": "paper", "normalize": False},
    "della_linear": {"weight": (0.5, -0.4, 0.9), "density": (0.3, 0.5, 0.9), "epsilon": 0.0, "rescale": False, "normalize": True},
    "breadcrumbs": {
        "weight": (0.5, -0.4, 0.9), "density": (0.3, 0.0, 0.01), "gamma": (0.0, 0.1, 0.5), "rescale": True, "normalize": True,
    },
    "breadcrumbs_ties": {"weight": (0.5, 1.2, 0.9), "density": 0.9, "gamma": 0.2, "variant": "paper", "normalize": True},
    "model_stock": {"filter_wise": True, "clip": True, "variant": "paper"},
    "nuslerp": {"weight": (1.5, -0.3), "along": "rows", "between": "deltas"},
    "multislerp": {"weight": (0.5, -0.2, 0.9), "between": "deltas", "normalize": False, "epsilon": 1e-3},
    "karcher": {"weight": (0.5, 0.2, 0.9), "between": "deltas", "max_iter": 3, "tol": 1e-9},
    "sce": {"variant": "paper"},
    "nearswap": {"t": 1.0},
    "arcee_fusion": {},
    "ram": {},
    "ramplus_tl": {"epsilon": 0.01, "r": 0.5, "alpha": 2.0},
    "tsvm": {"weight": (0.5, -1.0, 2.0)},
    "iso_c": {"weight": (0.5, -1.0, 2.0)},
    "fedavg": {"weight": (0.5, -0.1, 0.2), "clip_norm": 1e3, "lambda": 0.5},
    "fisher": {"weight": (0.5, -0.25, 0.75), "epsilon": 0.1},
    "regmean": {"weight": (0.5, -0.25, 0.75), "alpha": 0.5},
    "passthrough": {},
}  # fmt: skip
ONE_SOURCE = tuple(method for method, (_, most) in COUNTS.items() if most == 1)


def count_of(method: str, count: int = 3) -> int:
    """As many sources as asked for, or as the method takes."""
    least, most = COUNTS.get(method, (1, count))
    return min(max(count, least), most)


def inputs(method: str, shape=(100,), dtype=torch.bfloat16, *, resident=False, seed=0, spread=0.01, count=3) -> Inputs:
    """A base and sources near it, as fine-tunes are: as many as the method takes."""
    count = count_of(method, count)
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.05
    sources = [base + spread * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    place = Place(seed, "t", NAMES[:count])
    return Inputs(base.to(dtype), tuple(source.to(dtype) for source in sources), place, resident)
