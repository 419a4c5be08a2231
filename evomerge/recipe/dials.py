"""The methods and their knobs: what values each takes, and what it is where a recipe is silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from evomerge.document import REQUIRED

Kind = Literal["number", "count", "flag", "word"]


@dataclass(frozen=True)
class Dial:
    """What values a knob takes; `per_source` knobs have one for every source of the rule, `whole` ones no rows.

    Every number may vary by depth and by name; what is no number where it `varies`.
    """

    kind: Kind
    per_source: bool = False
    low: float = -1e6
    high: float = 1e6
    words: tuple[str, ...] = ()
    whole: bool = False  # one number for a whole tensor
    varies: bool = False


DIALS: dict[str, Dial] = {
    "weight": Dial("number", per_source=True),
    "density": Dial("number", per_source=True, low=0.0, high=1.0, whole=True),  # share of a delta that is kept
    "drop_rate": Dial("number", per_source=True, low=0.0, high=0.999, whole=True),  # share of a delta that DARE drops
    "gamma": Dial("number", per_source=True, low=0.0, high=1.0, whole=True),  # share of a delta that is cut off as outliers
    "select_topk": Dial("number", low=0.0, high=1.0, whole=True),  # share of what differs that SCE selects
    "epsilon": Dial("number", low=0.0, whole=True),  # what is smaller counts as nothing
    "lambda": Dial("number"),
    "t": Dial("number", low=0.0, high=1.0),
    "scale": Dial("number"),
    "r": Dial("number", low=0.0, whole=True),  # how much RAM+ makes up for averaging
    "alpha": Dial("number", low=0.0, whole=True),  # and at most
    "clip_norm": Dial("number", low=0.0, whole=True),  # the longest that a client's delta stays
    "tol": Dial("number", low=0.0, whole=True),
    "max_iter": Dial("count", low=1, varies=True),
    "normalize": Dial("flag", varies=True),
    "rescale": Dial("flag", varies=True),
    "filter_wise": Dial("flag", varies=True),
    "clip": Dial("flag", varies=True),
    "between": Dial("word", words=("models", "deltas")),
    "along": Dial("word", words=("tensor", "rows", "columns"), varies=True),  # what one vector is
    "variant": Dial("word", words=("mergekit", "paper")),
}


WINDOW = Dial("number", per_source=True, low=0.0, high=0.5, whole=True)  # DELLA: how far chances to stay reach around density


STRENGTH = Dial("number", per_source=True, whole=True)  # of a source's singular values


OWN_DIALS = {
    ("della", "epsilon"): WINDOW, ("della_linear", "epsilon"): WINDOW,
    ("regmean", "weight"): STRENGTH, ("regmean", "alpha"): Dial("number", low=0.0, high=1.0, whole=True),
    ("tsvm", "weight"): STRENGTH, ("iso_c", "weight"): STRENGTH,
}  # fmt: skip


# What each method takes, with its default; REQUIRED where a recipe must say.
METHOD_KNOBS: dict[str, dict[str, Any]] = {
    "linear": {"weight": REQUIRED, "normalize": True},
    "task_arithmetic": {"weight": REQUIRED, "lambda": 1.0, "normalize": False},
    "slerp": {"t": REQUIRED, "variant": "mergekit"},
    "ties": {"weight": 1.0, "density": REQUIRED, "lambda": 1.0, "normalize": True, "rescale": False, "variant": "mergekit"},
    "dare_linear": {
        "weight": REQUIRED, "drop_rate": REQUIRED, "lambda": 1.0, "normalize": False, "rescale": True, "variant": "mergekit",
    },
    "dare_ties": {
        "weight": REQUIRED, "drop_rate": REQUIRED, "lambda": 1.0, "normalize": False, "rescale": True, "variant": "mergekit",
    },
    "della": {
        "weight": REQUIRED, "density": REQUIRED, "epsilon": 0.15, "lambda": 1.0, "normalize": True, "rescale": True,
        "variant": "mergekit",
    },
    "della_linear": {
        "weight": REQUIRED, "density": REQUIRED, "epsilon": 0.15, "lambda": 1.0, "normalize": False, "rescale": True,
        "variant": "mergekit",
    },
    "breadcrumbs": {
        "weight": REQUIRED, "density": REQUIRED, "gamma": 0.01, "lambda": 1.0, "normalize": False, "rescale": False,
    },
    "breadcrumbs_ties": {
        "weight": REQUIRED, "density": REQUIRED, "gamma": 0.01, "lambda": 1.0, "normalize": False, "rescale": False,
        "variant": "mergekit",
    },
    "model_stock": {"filter_wise": False, "clip": False, "variant": "mergekit"},
    "nuslerp": {"weight": REQUIRED, "along": "tensor", "between": "models"},
    "multislerp": {"weight": REQUIRED, "normalize": True, "epsilon": 1e-8, "between": "models"},
    "karcher": {"weight": 1.0, "max_iter": 10, "tol": 1e-5, "between": "models"},
    "sce": {"select_topk": 1.0, "variant": "mergekit"},
    "nearswap": {"t": REQUIRED},
    "arcee_fusion": {},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
    "tsvm": {"weight": 1.0, "lambda": 1.0},
    "iso_c": {"weight": 1.0, "lambda": 1.0},
    "fedavg": {"weight": 1.0, "clip_norm": REQUIRED, "lambda": 1.0},
    "fisher": {"weight": 1.0, "epsilon": 1e-6},
    "regmean": {"weight": 1.0, "alpha": 0.9},
    "passthrough": {"scale": 1.0},
}  # fmt: skip


# How many sources a method takes, where not any number: at least, at most
COUNTS = {
    "slerp": (1, 1), "nearswap": (1, 1), "arcee_fusion": (1, 1), "passthrough": (1, 1), "nuslerp": (2, 2), "model_stock": (2, 99),
}  # fmt: skip


# Methods over whole models, where the base may stand among the sources
INCLUDES_BASE = ("linear", "passthrough", "nuslerp", "multislerp", "karcher", "fisher", "regmean")


# And those that read nothing of it unless it does
WITHOUT_BASE = ("linear", "passthrough", "fisher", "regmean")


# Methods to which the two sides of a matrix are alike: groups of its columns may have numbers of their own
EITHER_WAY = (
    "linear", "task_arithmetic", "slerp", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "multislerp",
    "karcher", "passthrough",
)  # fmt: skip


SYNONYMS = {"density": "drop_rate", "drop_rate": "density"}


def dial_of(method: str, knob: str) -> Dial:
    """What values this knob takes in this method."""
    return OWN_DIALS.get((method, knob), DIALS[knob])
