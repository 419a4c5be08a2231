"""Where the sources disagree, as a prior for where to look: a parameter that moves much disagreement begins with a larger step.

    search: {sampler: cmaes, prior: discrepancy}

For every tensor ‖δ - mean δ‖² of each source; a parameter has that of the tensors of its rule, near its place in depth, over what
base and deltas have there. Steps are in proportion to its root, between half and twice the usual one.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from typing import Any

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.plan import outputs
from evomerge.candidate.stack import Depths
from evomerge.space import Space

LEAST, MOST = 0.5, 2.0  # of the usual step


def scales(space: Space) -> dict[str, float]:
    """Factor of the first step for each weight of a source; other parameters have none."""
    recipe = space.build(space.start())
    base = Checkpoint.open(recipe.base.location)
    sources = {name: Checkpoint.open(source.location) for name, source in recipe.sources.items()}
    apart, size = distances(base, sources)
    rules, depths = [rule.match for rule in recipe.rules], Depths(base.tensors)
    first = {tensor: next((i for i, match in enumerate(rules) if fnmatch.fnmatchcase(tensor, match)), None) for tensor in size}
    found: dict[str, float] = {}
    for parameter in space.parameters:
        if (place := _place(parameter.name)) and place[1] in sources:
            rule, source, point = place
            points = sum(p.name.split("@")[0] == parameter.name.split("@")[0] for p in space.parameters)
            near = {t: _hat(depths.of(t), point, points) for t, i in first.items() if i == rule}
            moved = sum(share * apart[source][t] for t, share in near.items())
            there = sum(share * size[t] for t, share in near.items())
            if there > 0:
                found[parameter.name] = math.sqrt(moved / there)
    middle = sum(found.values()) / len(found) if found else 0.0
    return {name: min(max(value / middle, LEAST), MOST) for name, value in found.items()} if middle > 0 else {}


def distances(base: Checkpoint, sources: Mapping[str, Checkpoint]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """{source: {tensor: ‖δ - mean δ‖²}} and {tensor: ‖base‖² + mean ‖δ‖²}, tensor by tensor in float32; of one source ‖δ‖²."""
    import torch

    apart: dict[str, dict[str, float]] = {name: {} for name in sources}
    size: dict[str, float] = {}
    for tensor in outputs(base):
        origin = base.read(tensor)
        if not origin.is_floating_point():
            continue
        origin = origin.float()
        deltas = torch.stack([source.read(tensor).float() - origin for source in sources.values()])  # [K, *shape]
        centre = deltas.mean(dim=0) if len(sources) > 1 else torch.zeros_like(origin)
        for name, delta in zip(sources, deltas, strict=True):
            apart[name][tensor] = float((delta - centre).square().sum())
        size[tensor] = float(origin.square().sum() + deltas.square().sum() / len(sources))  # the base's may be all 0
    return apart, size


def _place(name: str) -> tuple[int, str, int] | None:
    """Rule, source and control point of a weight's parameter."""
    found: Any = re.fullmatch(r"rules\[(\d+)\]\.(?:choice\[\d+\]\.)?weight\.([^.@#]+)(?:#\d+)?(?:@(\d+))?", name)
    return (int(found[1]), found[2], int(found[3] or 0)) if found else None


def _hat(depth: float, point: int, points: int) -> float:
    """How much a control point counts at a depth."""
    return 1.0 if points == 1 else max(0.0, 1 - abs(depth * (points - 1) - point))
