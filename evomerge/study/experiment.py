"""One YAML file is one experiment: what may be merged, what it is scored on, what it must not lose, how it is searched."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evomerge.document import Block, Place, dump_yaml, nearest, read_yaml
from evomerge.errors import DocumentError
from evomerge.scoring import ScoringConfig
from evomerge.scoring.suite import GuardConfig, Suite, refuse_overlap
from evomerge.space import Space
from evomerge.study.anytime import Anytime
from evomerge.study.objectives import check_objectives

BLOCKS = ("recipe", "suite", "guard", "scoring", "search", "root")


@dataclass(frozen=True)
class SearchConfig:
    """How the search goes about it; the file's `search` block."""

    sampler: str = "auto"
    trials: int = 200
    budget: float | None = None  # seconds of wall clock, selection and certificate included
    seed: int = 0
    eta: float = 3.0  # one in eta goes on at each rung; 1 races nobody
    grow: int = 0  # trials that end on each rung but the last, from the lowest up, before all climb on; 0: none ends early
    heal_after: int = 0  # the rung that an unhealed recipe must survive before its healing is paid for
    heal_eta: float = 1.5  # one in heal_eta survives it: mild, as the unhealed form says little of the healed one
    finalists: int = 5
    baselines: bool = True
    refine: bool = False  # whether single layers are searched around the best recipe, once the curves bring nothing more
    objectives: tuple[str, ...] = ("target",)  # see objectives.py
    prior: str = "none"  # or discrepancy: larger first steps where the sources disagree
    attribution: int = 0  # finalists that are scored again without each delta
    anytime: Anytime | None = None  # proof against a fixed parent while documents are spent
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
            grow=block.integer("grow", cls.grow),
            heal_after=block.integer("heal_after", cls.heal_after),
            heal_eta=float(block.number("heal_eta", cls.heal_eta, low=1.0)),
            finalists=block.integer("finalists", cls.finalists, low=1),
            baselines=block.flag("baselines", cls.baselines),
            refine=block.flag("refine", cls.refine),
            objectives=tuple(map(str, block.sequence("objectives", list(cls.objectives)))),
            prior=block.text("prior", cls.prior, among=("none", "discrepancy")),
            attribution=block.integer("attribution", cls.attribution),
            anytime=Anytime.from_data(block.get("anytime"), place / "anytime") if "anytime" in block else None,
            repair=block.integer("repair", cls.repair),
            sampler_options=dict(block.mapping("sampler_options", {})),
        )

    def later(self) -> tuple[str, ...]:
        """Keys that came after the first studies and stand at their defaults: they make no other study of an old one."""
        new = ("refine", "objectives", "prior", "attribution", "anytime", "grow")
        return tuple(key for key in new if getattr(self, key) == getattr(SearchConfig, key))

    def ceiling(self, number: int, rungs: int) -> int:
        """The rung that the trial of this number may climb to: as long as little is known, few documents each tell the most."""
        return min(number // self.grow, rungs - 1) if self.grow else rungs - 1

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
        if search.grow and (search.eta > 1 or len(search.objectives) > 1):
            raise DocumentError(
                f"{place / 'search' / 'grow'}: trials end on a rung by their number, which takes one objective and no race; set"
                " eta to 1, or leave grow out"
            )
        space = Space.from_data(block.get("recipe"), place / "recipe", root)
        check_objectives(search.objectives, suite, guard, place / "search" / "objectives")
        if search.anytime and search.anytime.against not in (models := ("base", *space.template["sources"])):
            raise DocumentError(
                f"{place / 'search' / 'anytime'}: against {search.anytime.against!r}, which is no parent here"
                f"{nearest(search.anytime.against, models)}"
            )
        if search.refine:
            _check_refinable(search, space, place / "search" / "refine")
        return cls(
            space=space,
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
        search = {k: v for k, v in asdict(self.search).items() if k not in self.search.limits() and k not in self.search.later()}
        parts = {
            "space": self.data["recipe"],
            "suite": self.data["suite"],
            "guard": self.data.get("guard"),
            "scoring": self.data.get("scoring"),
            "search": search,
        }
        return {name: digest(part) for name, part in parts.items()}


def _check_refinable(search: SearchConfig, space: Space, place: Place) -> None:
    if len(search.objectives) > 1:
        raise DocumentError(f"{place}: goes on around one best recipe; with several objectives leave it out")
    if not any("@" in parameter.name for parameter in space.parameters):
        raise DocumentError(f"{place}: the recipe has no curve over depth to open; give a range control points, as points: 4")


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
