"""What a guard must keep. Of a task a number is the loss allowed against the base; a mapping says more:

guard:
  tasks:
    mmlu: 0.02                                        # may lose less than two points to the base
    gsm8k: {loss: 0.02, against: best}                # to the best parent of the task
    safety: {flips: 0.01, floor: 0.95, choices: 4}    # documents that may turn wrong; a mean that no parent sets
    wikitext: {loss: 0.05, ceiling: 1.8}              # of a metric of which less is better
    drop: {loss: 0.02, clusters: passage}             # documents with the same `passage` are right or wrong together
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.document import Block, Place, number
from evomerge.errors import GuardError

AGAINST = ("base", "best")


@dataclass(frozen=True)
class Bound:
    """The bounds of one guard task; at least one of loss, flips, floor and ceiling."""

    loss: float | None = None  # of the mean, against the parent
    flips: float | None = None  # rate of documents that the parent answers better
    floor: float | None = None  # of the mean, where more is better
    ceiling: float | None = None  # of the mean, where less is better
    against: str = "base"  # or "best": the parent that is best at the task on search documents
    choices: int | None = None  # of a multiple choice: what guessing flips is told beside what flipped
    clusters: str | None = None  # the field of a document that says what it shares with others

    @classmethod
    def of(cls, value: Bound | float) -> Bound:
        """A number is a loss."""
        return value if isinstance(value, Bound) else cls(loss=value)

    @classmethod
    def from_data(cls, data: object, place: Place) -> Bound | float:
        """A number, or a mapping; raises GuardError or DocumentError."""
        if not isinstance(data, Mapping):
            return float(number(data, place, low=0.0, high=1.0))
        block = Block(data, place, list(cls.__dataclass_fields__))
        bound = cls(
            loss=block.number("loss", None, low=0.0),
            flips=block.number("flips", None, low=0.0, high=1.0),
            floor=block.number("floor", None),
            ceiling=block.number("ceiling", None),
            against=block.text("against", cls.against, among=AGAINST),
            choices=block.integer("choices", None, low=2),
            clusters=block.text("clusters", None),
        )
        if bound.loss is bound.flips is bound.floor is bound.ceiling is None:
            raise GuardError(f"{place}: bounds nothing; give loss, flips, floor or ceiling")
        if bound.floor is not None and bound.ceiling is not None:
            raise GuardError(f"{place}: has a floor and a ceiling; more is better of a metric or less, give one of the two")
        return bound

    def to_data(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Ewc:
    """The elastic weights guard: a limit on the loss, in nats a token, that a source's Fisher predicts, or a price for it."""

    fisher: str  # folder of SOURCE.safetensors
    limits: Mapping[str, float] = field(default_factory=dict, hash=False)
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)  # of a nat, in units of the suite's aggregate

    @classmethod
    def from_data(cls, data: object, place: Place, root: Path | None) -> Ewc:
        """`{fisher: FOLDER, limits: {base: 0.05}, weights: {base: 1.0}}`; raises GuardError or DocumentError."""
        block = Block(data, place, list(cls.__dataclass_fields__))
        folder = block.text("fisher")
        limits, weights = (_amounts(block, key) for key in ("limits", "weights"))
        if not limits and not weights:
            raise GuardError(
                f"{place}: neither limits a source nor weighs one; give `limits: {{base: 0.05}}`, or `weights` for the objective"
            )
        path = str((root / folder).resolve()) if root is not None and not folder.startswith("zoo:") else folder
        return cls(path, limits, weights)

    @property
    def sources(self) -> tuple[str, ...]:
        """Those whose penalty is asked for."""
        return tuple(dict.fromkeys((*self.limits, *self.weights)))

    def price(self, distances: Mapping[str, float]) -> float:
        """What the objective pays for these penalties."""
        return sum(weight * distances.get(f"ewc {name}", 0.0) for name, weight in self.weights.items())

    def to_data(self) -> dict[str, Any]:
        return {"fisher": self.fisher, "limits": dict(self.limits), "weights": dict(self.weights)}


def _amounts(block: Block, key: str) -> dict[str, float]:
    """A mapping of sources to numbers of 0 or more."""
    entries = block.mapping(key, {})
    inner = Block(entries, block.place / key, [str(name) for name in entries])
    return {str(name): float(inner.number(str(name), low=0.0)) for name in entries}
