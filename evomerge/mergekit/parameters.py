"""mergekit's methods and their parameters by the names that they have there, and what each is called here.

Taken from running mergekit 0.1.5, whose defaults these are.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.document import REQUIRED


@dataclass(frozen=True)
class Parameter:
    """What a parameter is called here; `input` ones have a value for every model, `delta` ones for all but the base."""

    knob: str
    scope: Literal["shared", "input", "delta"] = "shared"
    default: Any = REQUIRED
    flag: bool = False
    rest: bool = False  # here the share that is dropped, there the share that is kept
    idle: str = ""  # why it changes nothing there


INT8 = Parameter("", flag=True, default=False, idle="changes nothing: it is about the memory that mergekit takes")
WEIGHT = Parameter("weight", "delta")
DENSITY = Parameter("density", "delta", 1.0)
DROP = Parameter("drop_rate", "delta", 1.0, rest=True)


def _deltas(normalize: bool, rescale: bool, **own: Parameter) -> dict[str, Parameter]:
    """What all methods share that add up sparse deltas."""
    return {
        "weight": WEIGHT,
        **own,
        "lambda": Parameter("lambda", default=1.0),
        "normalize": Parameter("normalize", default=normalize, flag=True),
        "rescale": Parameter("rescale", default=rescale, flag=True),
        "int8_mask": INT8,
    }


GAMMA, EPSILON = Parameter("gamma", "delta", 0.01), Parameter("epsilon", "delta", 0.15)
NOT_SPARSE = Parameter("", "delta", 1.0, idle="changes nothing: task_arithmetic keeps all of a delta")
NO_RESCALE = Parameter("", default=False, flag=True, idle="changes nothing: task_arithmetic has nothing to rescale")
PARAMETERS: dict[str, dict[str, Parameter]] = {
    "linear": {"weight": Parameter("weight", "input"), "normalize": Parameter("normalize", default=True, flag=True)},
    "slerp": {"t": Parameter("t")},
    "nuslerp": {
        "weight": WEIGHT,
        "nuslerp_row_wise": Parameter("along", default=False, flag=True),
        "nuslerp_flatten": Parameter("along", default=True, flag=True),
    },
    "multislerp": {
        "weight": WEIGHT,
        "normalize_weights": Parameter("normalize", default=True, flag=True),
        "eps": Parameter("epsilon", default=1e-8),
    },
    "karcher": {"max_iter": Parameter("max_iter", default=10), "tol": Parameter("tol", default=1e-5)},
    "task_arithmetic": _deltas(False, False, density=NOT_SPARSE) | {"rescale": NO_RESCALE},
    "ties": _deltas(True, False, density=DENSITY),
    "dare_linear": _deltas(False, True, density=DROP),
    "dare_ties": _deltas(False, True, density=DROP),
    "breadcrumbs": _deltas(False, False, density=DENSITY, gamma=GAMMA),
    "breadcrumbs_ties": _deltas(False, False, density=DENSITY, gamma=GAMMA),
    "della": _deltas(True, True, density=DENSITY, epsilon=EPSILON),
    "della_linear": _deltas(False, True, density=DENSITY, epsilon=EPSILON),
    "model_stock": {"filter_wise": Parameter("filter_wise", default=False, flag=True)},
    "sce": {"select_topk": Parameter("select_topk", default=1.0), "int8_mask": INT8},
    "nearswap": {"t": Parameter("t")},
    "arcee_fusion": {},
    "ram": {"epsilon": Parameter("epsilon", default=1e-5)},
    "ramplus_tl": {
        "r": Parameter("r", default=0.1), "alpha": Parameter("alpha", default=0.2), "epsilon": Parameter("epsilon", default=1e-5),
    },
    "passthrough": {"scale": Parameter("scale", "input", None)},
}  # fmt: skip
# Over whole models: a base_model that is not listed becomes one of them
OVER_MODELS = ("linear", "karcher", "passthrough")
# Over deltas where there is a base_model, over models where there is none
EITHER = ("nuslerp", "multislerp")


def to_glob(filter_: str | None) -> str:
    """The pattern for names that contain a filter."""
    return "*" if filter_ in (None, "*") else f"*{glob.escape(str(filter_))}*"


def to_filter(pattern: str) -> tuple[str | None, bool] | None:
    """The filter of a pattern, and whether it takes the same names; None where there is no such filter."""
    inner = pattern.strip("*")
    plain = re.sub(r"\[([*?\[])\]", r"\1", inner)
    if glob.escape(plain) != inner:
        return None
    if not inner:
        return None, True
    return plain, pattern.startswith("*") and pattern.endswith("*")


def kept(value: Any) -> Any:
    """1 - x of a number or of each control point, without the dust of binary fractions."""
    return [kept(each) for each in value] if isinstance(value, list) else round(1 - value, 12)
