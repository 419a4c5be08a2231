"""An outcome read back from its folder, and its place in the race with it."""

from __future__ import annotations

from dataclasses import replace

from evomerge.recipe import Recipe
from evomerge.study.race import Arrival, Decision
from evomerge.study.record import Record
from evomerge.study.trial import Arena, Outcome

NOTED = ("state", "rung", "told", "constraints", "seconds", "reason")  # in every verdict.json


def stored_outcome(record: Record, arena: Arena, folder: str, name: str, recipe: Recipe) -> Outcome | None:
    """An outcome as it was written, its arrivals noted in the race; None where the folder is not there."""
    notes, scores = record.read_json(f"{folder}/verdict.json"), record.read_scores(folder)
    if notes is None or scores is None:
        return None
    arrivals = tuple((Arrival(**arrival), Decision(**decision)) for arrival, decision in notes["arrivals"])
    for arrival, decision in arrivals:
        arena.race.restore(arrival, decision)
    if not notes["healed"]:
        recipe = replace(recipe, heal=None)
    noted = {key: notes[key] for key in NOTED} | {key: notes.get(key, {}) for key in ("distances", "objectives")}
    estimate = arena.estimate(scores) if len(scores) else None
    return Outcome(name, recipe, scores=scores, estimate=estimate, arrivals=arrivals, **noted)
