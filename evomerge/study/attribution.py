"""Which source in which block helps or harms: a finalist's recipe again and again, each time without one delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge.recipe import Curve, Recipe, Rule
from evomerge.scoring.scores import Scores
from evomerge.study.executor import Executor, Job, Life, Result
from evomerge.study.record import Record
from evomerge.study.selection import Judge
from evomerge.study.trial import Outcome

PARTS = ("first third", "middle third", "last third")  # of the depth


@dataclass(frozen=True)
class Without:
    """A recipe that lacks one source's delta in one block."""

    block: str
    source: str
    recipe: Recipe


def leave_one_out(recipe: Recipe, layers: int) -> list[Without]:
    """Every source left out of every rule, and of every third of the depth; what has no weight to set to 0 stays as it is."""
    found = [
        Without(f"rules[{i}] {rule.match}", source, _changed(recipe, {i: _zero(rule, source)}))
        for i, rule in enumerate(recipe.rules)
        for source in _weighted(rule)
    ]
    if layers >= len(PARTS):
        for source in dict.fromkeys(source for rule in recipe.rules for source in _weighted(rule)):
            for part, name in enumerate(PARTS):
                rules = {i: _zero(r, source, part, layers) for i, r in enumerate(recipe.rules) if source in _weighted(r)}
                found.append(Without(name, source, _changed(recipe, rules)))
    return found


def attribute(
    outcomes: Sequence[Outcome],
    layers: int,
    documents: Mapping[str, Sequence[int]],
    judge: Judge,
    executor: Executor,
    record: Record,
) -> dict[str, Any]:
    """Score the finalists without each delta on search documents, and note what each was worth; what is noted already is kept."""
    noted: dict[str, Any] = record.read_json("attribution.json") or {}
    for outcome in outcomes:
        if outcome.name in noted:
            continue
        lives = (_once(without, documents) for without in leave_one_out(outcome.recipe, layers))
        rows = [_row(without, result, outcome.scores.select(documents), judge) for without, result in executor.run(lives)]
        noted[outcome.name] = sorted(rows, key=lambda row: (row["block"], row["source"]))
        record.write_json("attribution.json", noted)
    return noted


def _row(without: Without, result: Result, whole: Scores, judge: Judge) -> dict[str, Any]:
    """What the delta is worth: the finalist minus itself without it; above 0 it helps."""
    row: dict[str, Any] = {"block": without.block, "source": without.source, "error": result.error}
    if result.error is None:
        found = judge.compare(whole, result.scores)
        tasks = {task: each.difference for task, each in found.tasks.items()}
        row |= {"worth": found.difference, "low": found.low, "high": found.high, "n": found.n, "tasks": tasks}
    return row


def _once(without: Without, documents: Mapping[str, Sequence[int]]) -> Life[tuple[Without, Result]]:
    return without, (yield Job(without.recipe, documents))


def _weighted(rule: Rule) -> list[str]:
    """Sources of a rule whose weight can be 0."""
    weight = rule.knobs.get("weight")
    if not isinstance(weight, Mapping):
        return []
    curves = {source: curve for source, curve in weight.items() if source != "base" and isinstance(curve, Curve)}
    return [source for source, curve in curves.items() if any(any(points) for points in curve.points)]


def _zero(rule: Rule, source: str, part: int | None = None, layers: int = 1) -> Rule:
    """The rule with this source's weight 0, everywhere or in one third of the layers."""
    weight = rule.knobs["weight"]
    assert isinstance(weight, Mapping)
    whole = weight[source]
    assert isinstance(whole, Curve)
    curve = Curve(((0.0,),)) if part is None else _hollow(whole, part, layers)
    return replace(rule, knobs={**rule.knobs, "weight": {**weight, source: curve}})


def _hollow(curve: Curve, part: int, layers: int) -> Curve:
    depths = [layer / (layers - 1) for layer in range(layers)]
    inside = [layer * len(PARTS) // layers == part for layer in range(layers)]
    values = [(0.0,) * len(curve.points) if gone else curve.at(depth) for depth, gone in zip(depths, inside, strict=True)]
    return Curve(tuple(zip(*values, strict=True)), curve.across)


def _changed(recipe: Recipe, rules: Mapping[int, Rule]) -> Recipe:
    return replace(recipe, rules=tuple(rules.get(i, rule) for i, rule in enumerate(recipe.rules)))
