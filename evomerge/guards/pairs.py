"""Two models' scores lined up document by document, or cluster by cluster where documents share a context."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ScoringError

Array = NDArray[np.float64]
Values = Mapping[int, float]  # {document: score}
Clusters = Mapping[int, Hashable]  # {document: what it shares with others, such as a passage}


@dataclass(frozen=True)
class Pairs:
    """What is drawn independently, documents or clusters of them, as sums over their documents."""

    candidate: Array  # [G]
    reference: Array  # [G]
    sizes: Array  # [G]
    lost: int  # documents on which the candidate scores lower
    won: int
    graded: bool  # some score is neither 0 nor 1
    unit: bool  # every score lies in 0..1
    clustered: bool

    @property
    def n(self) -> int:
        return int(self.sizes.sum())

    @property
    def counts(self) -> bool:
        """Whether the two numbers of flips and n tell all."""
        return not (self.graded or self.clustered)

    @property
    def delta(self) -> Array:
        return self.candidate - self.reference

    @property
    def difference(self) -> float:
        return float(self.delta.sum() / self.n)

    @property
    def means(self) -> tuple[float, float]:
        return float(self.candidate.sum() / self.n), float(self.reference.sum() / self.n)

    @property
    def variance(self) -> float:
        """Of the mean difference, each cluster in one piece (Miller 2024), times G/(G-1) as in the paired t; of one piece 1."""
        residual = self.delta - self.sizes * self.difference
        g = len(self.sizes)
        if g == 1:
            return 1.0
        return float((residual**2).sum() / self.n**2 * g / (g - 1))

    @property
    def differing(self) -> int:
        return int(np.count_nonzero(self.delta))

    @property
    def largest(self) -> float:
        """The largest difference seen; where none was, that of a document won or lost."""
        return float(np.abs(self.delta).max()) or 1.0

    @property
    def reach(self) -> float:
        """The most that a document can lose: 1 where scores lie in 0..1, else the largest difference seen."""
        return 1.0 if self.unit else self.largest

    @property
    def swapped(self) -> Pairs:
        """The same pairs with candidate and reference exchanged."""
        return replace(self, candidate=self.reference, reference=self.candidate, lost=self.won, won=self.lost)


def pair(candidate: Values, reference: Values, clusters: Clusters | None = None) -> Pairs:
    """Line the candidate's documents up with the reference's, which may know more of them."""
    docs = sorted(candidate)
    missing = [doc for doc in docs if doc not in reference]
    if missing:
        where = f"document {missing[0]} ({len(missing)} of {len(docs)})"
        raise ScoringError(f"the reference lacks {where}; score both models on the same documents")
    if not docs:
        raise ScoringError("the candidate has no document to compare; score it first")
    new, old = (np.array([values[doc] for doc in docs], dtype=np.float64) for values in (candidate, reference))
    group = _codes([doc if clusters is None else clusters[doc] for doc in docs])
    sizes = np.bincount(group).astype(np.float64)
    scores = np.concatenate([new, old])
    return Pairs(
        candidate=_sums(group, new),
        reference=_sums(group, old),
        sizes=sizes,
        lost=int((new < old).sum()),
        won=int((new > old).sum()),
        graded=not bool(np.isin(scores, (0, 1)).all()),
        unit=bool((scores >= 0).all() and (scores <= 1).all()),
        clustered=len(sizes) < len(docs),
    )


def lost_documents(candidate: Values, reference: Values, clusters: Clusters | None = None) -> Pairs:
    """Each document as 1 against 0 where the candidate scores lower: its loss is the rate of negative flips."""
    lost = {doc: float(candidate[doc] < reference[doc]) for doc in candidate}
    return pair({doc: 1 - value for doc, value in lost.items()}, dict.fromkeys(lost, 1.0), clusters)


def _sums(group: NDArray[np.int64], values: Array) -> Array:
    return np.bincount(group, weights=values).astype(np.float64)


def _codes(labels: Sequence[Hashable]) -> NDArray[np.int64]:
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)
