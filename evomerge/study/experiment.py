"""One YAML file is one experiment: what may be merged, what it is scored on, what it must not lose, how it is searched."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.document import Block, Place, dump_yaml, read_yaml
from evomerge.errors import DocumentError
from evomerge.scoring import ScoringConfig
from evomerge.scoring.suite import GuardConfig, Suite, refuse_overlap
from evomerge.space import Space

BLOCKS = ("recipe", "suite", "guard", "scoring", "search", "root")


@dataclass(frozen=True)
class SearchConfig:
    """How the search goes about it; the file's `search` block."""

    sampler: str = "cmaes"
    trials: int = 200
    budget: float | None = None  # seconds of wall clock, selection and certificate included
    seed: int = 0
    eta: float = 3.0  # one in eta goes on at each rung; 1 races nobody
    heal_after: int = 0  # the rung that an unhealed recipe must survive before its healing is paid for
    heal_eta: float = 1.5  # one in heal_eta survives it: mild, as the unhealed form says little of the healed one
    finalists: int = 5
    baselines: bool = True
    repair: int = 5  # points tried between a refused model and its base; 0 mends nothing
    sampler_options: dict[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def from_data(cls, data: object, place: Place) -> SearchConfig:
        block = Block(data, place, list(cls.__dataclass_fields__))
        return cls(
            sampler=block.text("sampler", cls.sampler),
            trials=block.integer("trials", cls.trials, low=1),
            budget=duration(block.get("budget"), place / "budget") if "budget" in block else None,
            seed=block.integer("seed", cls.seed),
            eta=float(block.number("eta", cls.eta, low=1.0)),
            heal_after=block.integer("heal_after", cls.heal_after),
            heal_eta=float(block.number("heal_eta", cls.heal_eta, low=1.0)),
            finalists=block.integer("finalists", cls.finalists, low=1),
            baselines=block.flag("baselines", cls.baselines),
            repair=block.integer("repair", cls.repair),
            sampler_options=dict(block.mapping("sampler_options", {})),
        )

    def limits(self) -> dict[str, float | None]:
        """How long to search: what may change from one run of a study to the next."""
        return {"trials": self.trials, "budget": self.budget}


@dataclass(frozen=True)
class Experiment:
    """A parsed experiment file."""

    space: Space
    suite: Suite
    guard: GuardConfig
    scoring: ScoringConfig
    search: SearchConfig
    place: Place
    root: Path
    data: dict[str, Any] = field(hash=False)

    @classmethod
    def read(cls, path: str | Path) -> Experiment:
        """Read and check a file; relative paths are taken from its folder, or from its own key `root`."""
        path, place = Path(path), Place(str(path))
        block = Block(read_yaml(path), place, BLOCKS)
        root = Path(block.text("root", str(path.resolve().parent)))
        suite = Suite.from_data(block.get("suite"), place / "suite", root)
        guard = GuardConfig.from_data(block.get("guard", {}), place / "guard", root)
        refuse_overlap(suite, guard, place)
        search = SearchConfig.from_data(block.get("search", {}), place / "search")
        if search.heal_after >= len(suite.rungs):
            last = len(suite.rungs) - 1
            raise DocumentError(f"{place / 'search' / 'heal_after'}: there is no rung {search.heal_after}; the last is {last}")
        return cls(
            space=Space.from_data(block.get("recipe"), place / "recipe", root),
            suite=suite,
            guard=guard,
            scoring=ScoringConfig.from_data(block.get("scoring", {}), place / "scoring"),
            search=search,
            place=place,
            root=root,
            data=dict(block.data),
        )

    def to_yaml(self) -> str:
        """The file again, with the folder its relative paths start from."""
        return dump_yaml({**self.data, "root": str(self.root)})

    def identity(self) -> dict[str, str]:
        """A digest of every part that a resumed study must share; trials, budget and workers are free to change."""
        search = {k: v for k, v in vars(self.search).items() if k not in self.search.limits()}
        parts = {
            "space": self.data["recipe"],
            "suite": self.data["suite"],
            "guard": self.data.get("guard"),
            "scoring": self.data.get("scoring"),
            "search": search,
        }
        return {name: digest(part) for name, part in parts.items()}


def digest(data: object) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(value: object, place: Place) -> float:
    """Seconds in `8h`, `90m`, `1h30m`, `45s`, or a plain number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?[dhms])\s*)+", str(value))
    if not parts:
        raise DocumentError(f"{place}: {value!r} is not a duration; write 8h, 90m, 1h30m or 45s")
    return sum(float(amount) * _UNITS[unit] for amount, unit in re.findall(r"(\d+(?:\.\d+)?)([dhms])", str(value)))
