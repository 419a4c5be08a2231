"""How often a bet calls an equal candidate better, or worse, looking after every document: against whom it may be claimed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.report.tables import align
from evomerge.study.betting import wealth

ALPHA = 0.05
DOCUMENTS = 400
INCUMBENTS = (1, 30, 100, 300)  # the reference is the best of so many equals on the same documents
GAINS = (-0.1, -0.05, 0.0, 0.05, 0.1)


def bench_anytime(repetitions: int = 1000, seed: int = 0) -> str:
    """Rates over simulated studies: against a fixed parent α holds; against an incumbent it does not."""
    rng = np.random.default_rng(seed)
    error = 100 * (ALPHA * (1 - ALPHA) / repetitions) ** 0.5
    rows = [["candidate against a parent fixed before the documents", "called better", "called worse", "documents until better"]]
    for gain in GAINS:
        differences = _answers(rng, repetitions, gain) - _answers(rng, repetitions, 0.0)
        paths = wealth(differences)
        first = np.where((paths >= 1 / ALPHA).any(axis=1), (paths >= 1 / ALPHA).argmax(axis=1) + 1, DOCUMENTS)
        rows.append([f"{100 * gain:+.0f} points", _rate(differences), _rate(-differences), f"{first.mean():.0f}"])
    lines = [
        f"α {ALPHA:g}, {DOCUMENTS} documents, a look after each, {repetitions} repetitions (± {error:.1f} points)",
        "",
        *align(rows),
    ]
    rows = [["an equal candidate against the best of … equals on the same documents", "called worse"]]
    for count in INCUMBENTS:
        many = np.stack([_answers(rng, repetitions // 4, 0.0) for _ in range(count)])
        best = np.take_along_axis(many, many.mean(axis=2).argmax(axis=0)[None, :, None], axis=0)[0]
        rows.append([str(count), _rate(best - _answers(rng, repetitions // 4, 0.0))])
    return "\n".join([*lines, "", *align(rows)])


def _answers(rng: np.random.Generator, repetitions: int, gain: float) -> NDArray[np.float64]:
    """0 or 1 a document: right with chance a half and the gain."""
    return (rng.random((repetitions, DOCUMENTS)) < 0.5 + gain).astype(np.float64)


def _rate(differences: NDArray[np.float64]) -> str:
    return f"{100 * float((wealth(differences).max(axis=1) >= 1 / ALPHA).mean()):.1f} %"
