"""Coarse to fine: first the control points of the curves, then single layers around the best recipe, with a small step.

The study itself goes over to the second stage: when the first has not improved for a while, or has had its share of the trials or
of the time. From then on the curves of the incumbent are open at every layer, and all else stands where the incumbent has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evomerge.errors import EvomergeError
from evomerge.recipe import Curve, Recipe
from evomerge.space import Space, groups_of, parameters_of, path_of
from evomerge.study.experiment import Experiment
from evomerge.study.proposer import sampler_of
from evomerge.study.record import Record
from evomerge.study.trial import Outcome

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FILE = "refine.json"  # written when the second stage begins
PREFIX = "layers "  # of its parameters' names: `layers rules[0].weight.math@17`
STEP = 0.06  # first standard deviation of the second stage, in widths of the ranges
SHARE = 0.6  # of the trials, or of the time, after which the first stage ends in any case
PATIENCE = (24, 2)  # trials without a better one, at least, and for each dimension


@dataclass
class Stages:
    """What is proposed now, and by whom; `advance` before each proposal."""

    experiment: Experiment
    record: Record
    layers: int  # of the model: control points of an open curve
    starts: Sequence[Mapping[str, Any]] = ()  # beginnings beside the space's own
    references: Mapping[str, float] | None = None  # the best parent's mean of each target

    def __post_init__(self) -> None:
        self.sampler: Any = sampler_of(self.experiment, self.record, self.starts, self.references)
        self.distributions: dict[str, BaseDistribution] = self.experiment.space.distributions()
        self.fine: Space | None = None
        if noted := self.record.read_json(FILE):
            self._refine(noted["params"])

    def build(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial of either stage."""
        if not is_fine(params):
            return self.experiment.space.build(params)
        assert self.fine is not None
        return self.fine.build({name.removeprefix(PREFIX): value for name, value in params.items()})

    def built(self, params: Mapping[str, Any]) -> Recipe:
        """The same, or the start where these parameters make no recipe."""
        try:
            return self.build(params)
        except EvomergeError:
            return self.experiment.space.build(self.experiment.space.start())

    def advance(self, outcomes: Sequence[Outcome], trials: Sequence[Mapping[str, Any]], spent: float) -> bool:
        """Go over to the second stage if it is due; `trials` are the outcomes' parameters, `spent` the share of the time."""
        if not self.experiment.search.refine or self.fine is not None:
            return False
        best = _best(outcomes)
        if best is None or not self._due(best, len(outcomes), spent):
            return False
        self.record.write_json(FILE, {"after": len(outcomes), "incumbent": outcomes[best].name, "params": dict(trials[best])})
        self._refine(trials[best])
        return True

    def _due(self, best: int, ended: int, spent: float) -> bool:
        least, each = PATIENCE
        stale = ended - best > max(least, each * len(self.distributions))
        return stale or ended >= SHARE * self.experiment.search.trials or spent >= SHARE

    def _refine(self, params: Mapping[str, Any]) -> None:
        from evomerge.study.samplers import make_sampler

        self.fine = refined(self.experiment.space, params, self.layers)
        self.distributions = {PREFIX + name: kind for name, kind in self.fine.distributions().items()}
        start = {PREFIX + name: value for name, value in self.fine.start().items()}
        seed = self.experiment.search.seed + 1
        self.sampler = make_sampler("cmaes", seed=seed, space=self.distributions, start=start, sigma=STEP)


def is_fine(params: Mapping[str, Any]) -> bool:
    """Whether these are parameters of the second stage."""
    return any(name.startswith(PREFIX) for name in params)


def refined(space: Space, params: Mapping[str, Any], layers: int) -> Space:
    """The space around a recipe: its curves with a control point at every layer, which begin on the curve; all else fixed."""
    starts: dict[str, float] = {}
    template = _opened(space.template, "", "", params, layers, starts)
    found = parameters_of(template, space.place)
    return Space(template, space.place, space.root, tuple(replace(p, starts=(starts[p.name],)) for p in found))


def _opened(tree: Any, path: str, new: str, params: Mapping[str, Any], layers: int, starts: dict[str, float]) -> Any:
    """The tree at these parameters, with its curves open; `path` is the place in the old space, `new` the one in the new."""
    if isinstance(tree, list):
        return [_opened(item, f"{path}[{i}]", f"{new}[{i}]", params, layers, starts) for i, item in enumerate(tree)]
    if not isinstance(tree, Mapping):
        return tree
    if "range" in tree:
        return _open_range(tree, path, new, params, layers, starts)

    def inner(branch: Mapping[str, Any], at: str) -> dict[str, Any]:
        return {
            key: _opened(item, _join(at, key), _join(new, key), params, layers, starts)
            for key, item in branch.items()
            if key != "choice"
        }

    if "choice" not in tree:
        return inner(tree, path)
    name = _join(path, "choice")
    index = int(params[name])
    chosen = tree["choice"][index]
    within = f"{name}[{index}]"
    if not isinstance(chosen, Mapping) or "range" in chosen or "choice" in chosen:
        return _opened(chosen, within, new, params, layers, starts)
    return {**inner(tree, path), **inner(chosen, within)}


def _open_range(
    tree: Mapping[str, Any], path: str, new: str, params: Mapping[str, Any], layers: int, starts: dict[str, float]
) -> Any:
    points, (across, count) = int(tree.get("points", 1)), groups_of(tree)
    path, new = path_of(tree, path), path_of(tree, new)
    groups = [
        tuple(float(params[_name(path, row if count > 1 else None, point if points > 1 else None)]) for point in range(points))
        for row in range(count)
    ]
    if points == 1:
        return {across: [group[0] for group in groups]} if count > 1 else groups[0][0]
    for row, group in enumerate(groups):
        for layer in range(layers):
            value = Curve((group,)).at(layer / max(layers - 1, 1))[0]
            name = _name(new, row if count > 1 else None, layer if layers > 1 else None)
            starts[name] = min(max(value, float(tree["range"][0])), float(tree["range"][1]))
    return {**{key: value for key, value in tree.items() if key != "start"}, "points": layers}


def _name(path: str, row: int | None, point: int | None) -> str:
    return path + ("" if row is None else f"#{row}") + ("" if point is None else f"@{point}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _best(outcomes: Sequence[Outcome]) -> int | None:
    """Place of the best survivor that keeps its guards; the first of equals."""
    standings = [(o.standing, -i) for i, o in enumerate(outcomes) if o.standing]
    return -max(standings)[1] if standings else None
