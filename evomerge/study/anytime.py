"""Proof while documents are spent: who is shown to be worse than a fixed parent stops, who is shown to be better ends the search.

search: {anytime: {against: base, alpha: 0.05, margin: 0.0, drop: true, accept: false}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.document import Block, Place
from evomerge.scoring.scores import Scores
from evomerge.study.betting import enough, evidence, steps

FILE = "accepted.json"


@dataclass(frozen=True)
class Anytime:
    """The `search.anytime` block; `margin` is in units of the weighted mean of the tasks."""

    against: str = "base"
    alpha: float = 0.05
    margin: float = 0.0
    drop: bool = True
    accept: bool = False

    @classmethod
    def from_data(cls, data: object, place: Place) -> Anytime:
        """The block from plain data; raises DocumentError."""
        block = Block(data, place, list(cls.__dataclass_fields__))
        return cls(
            against=block.text("against", cls.against),
            alpha=float(block.number("alpha", cls.alpha, low=1e-6, high=0.5)),
            margin=float(block.number("margin", cls.margin, low=0.0, high=0.99)),
            drop=block.flag("drop", cls.drop),
            accept=block.flag("accept", cls.accept),
        )

    def is_worse(
        self, candidate: Scores, parents: Mapping[str, Scores], weights: Mapping[str, float], order: Mapping[str, Any]
    ) -> bool:
        """Whether the candidate is shown to be worse than the parent, at α for a candidate fixed before the documents."""
        against = evidence(steps(candidate, parents[self.against], weights, order))[1]
        return self.drop and against >= 1 / self.alpha

    def is_accepted(
        self, trial: int, candidate: Scores, parents: Mapping[str, Scores], weights: Mapping[str, float], order: Mapping[str, Any]
    ) -> bool:
        """Whether the `trial`-th candidate is shown to be better by the margin, with α shared out over all trials."""
        wealth = evidence(steps(candidate, parents[self.against], weights, order, self.margin))[0]
        return self.accept and wealth >= enough(trial, self.alpha)

    def said(self, name: str, trials: int) -> str:
        """What an early acceptance says, and what it does not."""
        better = f"{name} is better than {self.against} by more than {self.margin:g}, at α {self.alpha:g} over {trials} trials"
        return f"{better}; no more were run. It was found on these documents: the claim is the sealed ones'"
