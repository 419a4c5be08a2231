"""The table of samplers; all are `optuna.samplers.BaseSampler`, and so may be any other, named as `module:Class`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler

from evomerge.document import nearest
from evomerge.errors import RecipeError

from .auto import Auto, Pick, pick
from .borrowed import Borrowed, Gp, Tpe
from .cma_es import CmaEs
from .genetic import Nsga2, Nsga3
from .margins import Margins
from .niches import Niches
from .portfolio import Portfolio
from .seeded import Active, Seeded, Start
from .uniform import Qmc, Random

SAMPLERS: dict[str, type[Seeded]] = {
    "auto": Auto, "cmaes": CmaEs, "margins": Margins, "tpe": Tpe, "gp": Gp, "nsga2": Nsga2, "nsga3": Nsga3, "niches": Niches,
    "portfolio": Portfolio, "qmc": Qmc, "random": Random,
}  # fmt: skip

__all__ = [
    "SAMPLERS", "Auto", "Borrowed", "CmaEs", "Gp", "Margins", "Niches", "Nsga2", "Nsga3", "Pick", "Portfolio", "Qmc", "Random",
    "Seeded", "Tpe", "make_sampler", "pick",
]  # fmt: skip


def make_sampler(
    name: str,
    *,
    seed: int,
    space: Mapping[str, BaseDistribution] | None = None,
    start: Start = None,
    active: Active | None = None,
    **options: Any,
) -> BaseSampler:
    """A sampler of the table or of `module:Class`, for a known space; `options` are its own.

    A foreign class is made anew for every trial with a seed of its own, as Optuna's are, unless it is `Seeded` itself.
    """
    kind = SAMPLERS.get(name) or _foreign(name)
    known: dict[str, Any] = {"seed": seed, "space": space, "start": start, "active": active}
    try:
        return kind(**known, **options) if issubclass(kind, Seeded) else Borrowed(make=kind, **known, **options)
    except TypeError as error:
        raise RecipeError(f"search: the sampler {name!r} does not take these options: {error}") from None


def _foreign(name: str) -> type[BaseSampler]:
    module, _, attribute = name.partition(":")
    if not attribute:
        known = nearest(name, list(SAMPLERS))
        raise RecipeError(f"search: sampler {name!r} is not known{known}; any other is named as module:Class")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"search: sampler {name!r} cannot be imported: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, BaseSampler)):
        raise RecipeError(f"search: sampler {name!r} is not an optuna.samplers.BaseSampler")
    return kind
