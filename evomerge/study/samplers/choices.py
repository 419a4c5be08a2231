"""How often each option of each choice is proposed: learned from ranks, without an order among them, none ever given up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]

RATE = 0.15  # of the way towards what the better half chose, at each update


class Choices:
    """A probability for every option, moved along the natural gradient of the expected rank.

    p += rate · Σ wᵢ (one-hot(cᵢ) - p), with the recombination weights of CMA-ES (Ollivier et al., 2017, section 4.2).
    The margin is after Hamano et al., CatCMA, 2024: about one trial of a population tries another option.
    """

    def __init__(self, options: Sequence[int], population: int) -> None:
        self.probabilities: list[Probabilities] = [np.full(count, 1 / count) for count in options]
        several = [count for count in options if count > 1]
        self._margins = [1 / (population * len(several) * (count - 1)) if count > 1 else 0.0 for count in options]
        self._margins = [min(margin, 0.5 / count) for margin, count in zip(self._margins, options, strict=True)]

    def draw(self, rng: np.random.Generator) -> list[int]:
        """An option of each choice."""
        return [int(rng.choice(len(p), p=p)) for p in self.probabilities]

    def learn(self, chosen: Sequence[Sequence[int]], weights: Sequence[float]) -> None:
        """Of a population in the order of its ranks, best first; `weights` sum to 1, and who has none is forgotten.

        An option below 0 had no say, and moves nothing.
        """
        for place, (p, margin) in enumerate(zip(self.probabilities, self._margins, strict=True)):
            wanted = np.zeros_like(p)
            for options, weight in zip(chosen, weights, strict=False):
                if options[place] < 0:
                    wanted += weight * p
                else:
                    wanted[options[place]] += weight
            moved = np.maximum(p + RATE * (wanted - p), margin)
            over = moved - margin  # what can be given back without touching the margin
            self.probabilities[place] = margin + over * ((1 - margin * len(p)) / over.sum())
