"""What a tensor is merged by that its own numbers do not say: what the whole model keeps, how far it moved, what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from evomerge.candidate.plan import Plan, Step
from evomerge.candidate.statistics import NEEDS, Statistics
from evomerge.errors import CheckpointError
from evomerge.masks import Trim
from evomerge.methods.fedavg import squares
from evomerge.methods.inputs import Inputs
from evomerge.methods.threshold import Magnitudes, Table, thresholds
from evomerge.recipe import Recipe, Rule

if TYPE_CHECKING:
    from evomerge.candidate.stream import Sources

Trims = Mapping[str, Sequence[Trim]]  # tensor -> one for each source of its rule


class Beforehand:
    """Found before the first tensor of a merge; what no recipe changes is kept for the next."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, ...], Table] = {}
        self._statistics: dict[tuple[str, str], Statistics] = {}

    def trims(self, sources: Sources, recipe: Recipe, plan: Plan) -> Trims:
        """For TIES as in its paper, which trims over the whole model: what each tensor keeps of each source."""
        found: dict[str, list[Trim]] = {}
        for rule in recipe.all_rules.values():
            steps = [step for step in plan.steps if step.rule is rule]
            if rule.method == "ties" and rule.knobs["variant"] == "paper" and steps:
                inputs = [sources.inputs(recipe, step) for step in steps]
                columns = [self._trims(recipe, rule, k, steps, inputs) for k in range(len(rule.sources))]
                found |= {step.name: [column[i] for column in columns] for i, step in enumerate(steps)}
        return found

    def lengths(self, sources: Sources, recipe: Recipe, plan: Plan) -> dict[str, list[float]]:
        """For federated averaging, which clips a whole model's delta: how long each source's is, over the tensors of a rule."""
        found: dict[str, list[float]] = {}
        for rule in recipe.all_rules.values():
            steps = [step for step in plan.steps if step.rule is rule and rule.method == "fedavg"]
            columns = zip(*(squares(sources.inputs(recipe, step)) for step in steps), strict=True)
            lengths = [math.sqrt(math.fsum(column)) for column in columns]
            found |= {step.name: lengths for step in steps}
        return found

    def measured(self, sources: Sources, recipe: Recipe, step: Step) -> dict[str, list[Tensor]]:
        """Fisher diagonals or Gram matrices of a step's sources, for the methods that need them; all of them or none."""
        kind = NEEDS.get(step.method)
        if kind is None:
            return {}
        parts = [self._statistic(sources, recipe, name, kind).read(step.origin(name) or step.name) for name in step.sources]
        found = [part for part in parts if part is not None]
        if found and len(found) < len(parts):
            raise CheckpointError(f"{step.name}: only {len(found)} of {len(parts)} sources have a {kind} of it; make them alike")
        return {f"{'diagonal' if kind == 'fisher' else kind}s": found} if found else {}

    def _statistic(self, sources: Sources, recipe: Recipe, name: str, kind: str) -> Statistics:
        source = recipe.base if name == "base" else recipe.sources[name]
        file = getattr(source, kind)
        if (name, str(file)) not in self._statistics:
            self._statistics[name, str(file)] = Statistics.open(kind, name, file, sources.checkpoint(source.location))
        return self._statistics[name, str(file)]

    def _trims(self, recipe: Recipe, rule: Rule, k: int, steps: Sequence[Step], inputs: Sequence[Inputs]) -> Sequence[Trim]:
        density = steps[0].knobs["density"][rule.sources[k]][0]
        vectors = [tensor.magnitudes[k] for tensor in inputs]
        return thresholds(vectors, density, self._table(recipe, (rule.base, rule.sources[k]), steps, vectors))

    def _table(self, recipe: Recipe, pair: tuple[str, str], steps: Sequence[Step], vectors: Sequence[Magnitudes]) -> Table:
        key = (*locations(recipe, pair), *(step.origin(role) or "" for step in steps for role in pair))
        if key not in self._tables:
            self._tables[key] = Table.merge([vector.table for vector in vectors])
        return self._tables[key]


def locations(recipe: Recipe, names: Sequence[str]) -> tuple[str, ...]:
    """Where the base and sources of these names lie."""
    return tuple((recipe.base if name == "base" else recipe.sources[name]).location for name in names)
