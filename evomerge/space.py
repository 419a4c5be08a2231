"""A search space is a recipe with ranges where the numbers are.

    {range: [0.0, 1.2]}                 a number            {range: [1, 8], log: true}   searched in its logarithm
    {range: [0.0, 1.2], points: 4}      a curve over depth, from four control points
    {range: [0.0, 1.2], rows: 4}        one number for each of four equal groups of a tensor's rows; `columns: 4` of its columns
    {range: [0.0, 1.2], tied: mlp}      the same number wherever a range is tied by this name; all of them are written alike
    {range: [0.1, 1.0], start: 0.2}     where the search begins; the middle otherwise
    {range: [0.1, 1.0], start: [0.2, 0.5]}       several beginnings: each is tried, and the search goes on from the best
    {choice: [a, b]}                    one of several values, or of several sub-trees that are joined with the keys beside them

A slice of a stack may be open too, and with `repeat` it stands several times, each with parameters of its own:

    {repeat: 4, layers: {choice: [0, 1, 2]}, on: {choice: [true, false]}, scale: {range: [0.5, 1.5]}}

A parameter's name is its path in the file, `rules[0].weight.math@2`, or what it is tied by, `tied.mlp@2`. Every parameter is
proposed in every trial, also those of a sub-tree that was not chosen or a slice that is off: samplers then see one fixed space,
and none falls back to random search in silence. `active` says which of them had a say: no sampler learns anything from the
others, and recipes that differ in nothing else are one recipe, whose scores are reused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.document import Block, Place, number
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

RANGE_KEYS = ("range", "log", "points", "rows", "columns", "tied", "start")


@dataclass(frozen=True)
class Parameter:
    """One dimension: a number in [low, high], or the index of one of `options` choices."""

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    log: bool = False
    options: int = 0

    def start(self, place: int) -> float | int:
        """Its value at one of the beginnings; a single one is all of them."""
        value = self.starts[min(place, len(self.starts) - 1)]
        return int(value) if self.options else value

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        if self.options:
            return CategoricalDistribution(tuple(range(self.options)))
        return FloatDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Space:
    """A recipe with open numbers; `build` closes them."""

    template: Mapping[str, Any] = field(hash=False)
    place: Place
    root: Path | None
    parameters: tuple[Parameter, ...]

    @classmethod
    def from_data(cls, data: object, place: Place, root: Path | None = None) -> Space:
        """A space from plain data, tried at the ends of every range and at every choice. Raises RecipeError or DocumentError."""
        template = Block(
            data, place, ["base", "sources", "rules", "slices", "context", "heal", "tokenizer", "chat_template", "dtype", "seed"]
        ).data
        if template.get("tokenizer") is not None:
            raise RecipeError(
                f"{place / 'tokenizer'}: a search scores every candidate with the base's tokenizer; give each source the base's"
                " vocabulary first (evomerge merge, tokenizer: base), and search over what comes out"
            )
        template = _repeated(template, place)
        space = cls(template, place, root, parameters_of(template, place))
        _check_starts(space)
        for corner in space.corners():
            space.build(corner)
        return space

    def distributions(self) -> dict[str, BaseDistribution]:
        return {parameter.name: parameter.distribution() for parameter in self.parameters}

    def start(self) -> dict[str, float | int]:
        """Where the search begins: the first of its beginnings."""
        return self.starts()[0]

    def starts(self) -> list[dict[str, float | int]]:
        """All beginnings."""
        count = max((len(p.starts) for p in self.parameters), default=1)
        return [{p.name: p.start(place) for p in self.parameters} for place in range(count)]

    def active(self, values: Mapping[str, float | int]) -> set[str]:
        """The parameters that these values leave a say: none of an option that was not chosen, nor of a slice that is off."""
        return set(_active(self.template, "", values))

    @property
    def is_conditional(self) -> bool:
        """Whether some values leave others without a say."""
        return any(len(self.active(corner)) < len(self.parameters) for corner in self.corners())

    def corners(self) -> Iterator[dict[str, float | int]]:
        """All ranges at their low, then their high end, for each option of each choice: what must already be a valid recipe."""
        most = max((p.options for p in self.parameters), default=0)
        for option in range(max(most, 1)):
            for end in ("low", "high"):
                yield {p.name: min(option, p.options - 1) if p.options else getattr(p, end) for p in self.parameters}

    def build(self, values: Mapping[str, float | int]) -> Recipe:
        """The recipe at these parameter values; the same values give the same recipe, bit for bit."""
        return Recipe.from_data(_fill(self.template, "", values), self.place, self.root)


def suggest(space: Space, trial: BaseTrial) -> Recipe:
    """The recipe that an Optuna trial proposes; works with any study and any sampler."""
    values: dict[str, float | int] = {}
    for p in space.parameters:
        if p.options:
            values[p.name] = trial.suggest_categorical(p.name, tuple(range(p.options)))
        else:
            values[p.name] = trial.suggest_float(p.name, p.low, p.high, log=p.log)
    return space.build(values)


def parameters_of(template: Mapping[str, Any], place: Place) -> tuple[Parameter, ...]:
    """The dimensions of a recipe with ranges, in the order of the file; tied ones once."""
    found = tuple(dict.fromkeys(_parameters(template, "", place)))
    _check_ties(template, place)
    return found


def _repeated(template: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    """A slice with `repeat: N` stands N times, each with parameters of its own."""
    slices = template.get("slices")
    if not isinstance(slices, list):
        return template
    found: list[Any] = []
    for i, part in enumerate(slices):
        block = part if isinstance(part, Mapping) else {}
        count = Block({"repeat": block.get("repeat", 1)}, place / "slices" / i, ["repeat"]).integer("repeat", low=1)
        found += [{key: value for key, value in block.items() if key != "repeat"}] * count if block else [part]
    return {**template, "slices": found}


def _active(tree: Any, path: str, values: Mapping[str, float | int]) -> Iterator[str]:
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            yield from _active(item, f"{path}[{i}]", values)
    if not isinstance(tree, Mapping):
        return
    if "range" in tree:
        yield from _names(path_of(tree, path), groups_of(tree)[1], int(tree.get("points", 1)))
        return
    if "on" in tree and _fill(tree["on"], _join(path, "on"), values) is False:
        yield from _active(tree["on"], _join(path, "on"), values)
        return
    for key, item in tree.items():
        if key != "choice":
            yield from _active(item, _join(path, str(key)), values)
            continue
        name = _join(path, "choice")
        yield name
        chosen = int(values[name])
        yield from _active(item[chosen], f"{name}[{chosen}]", values)


def _parameters(tree: Any, path: str, place: Place) -> Iterator[Parameter]:
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            yield from _parameters(item, f"{path}[{i}]", place / i)
    elif isinstance(tree, Mapping) and "range" in tree:
        yield from _range(tree, path, place)
    elif isinstance(tree, Mapping):
        if "choice" in tree:
            yield _choice(tree, path, place)
        for key, item in tree.items():
            yield from _parameters(item, _join(path, str(key)), place / str(key))


def _range(tree: Mapping[str, Any], path: str, place: Place) -> Iterator[Parameter]:
    block = Block(tree, place, RANGE_KEYS)
    ends = block.sequence("range")
    if len(ends) != 2:
        raise RecipeError(f"{place}: a range has two ends, as [0.0, 1.2]; here are {len(ends)}")
    low, high = (float(number(end, place / "range")) for end in ends)
    log = block.flag("log", False)
    if low >= high:
        raise RecipeError(f"{place}: the range [{low:g}, {high:g}] is upside down or empty; write the smaller end first")
    if log and low <= 0:
        raise RecipeError(f"{place}: a logarithmic range must begin above 0, here it begins at {low:g}")
    starts = tuple(_starts(block, low, high, math.sqrt(low * high) if log else (low + high) / 2))
    if "rows" in tree and "columns" in tree:
        raise RecipeError(f"{place}: groups are of rows or of columns; leave one of the two out")
    if not re.fullmatch(r"[\w-]+", name := str(block.text("tied", "-"))):
        raise RecipeError(f"{place / 'tied'}: {name!r} is no name; take letters, digits, _ and -")
    for name in _names(path_of(tree, path), block.integer(groups_of(tree)[0], 1, low=1), block.integer("points", 1, low=1)):
        yield Parameter(name, low, high, starts, log)


def _starts(block: Block, low: float, high: float, middle: float) -> Iterator[float]:
    if not isinstance(block.get("start", middle), list):
        yield float(block.number("start", middle, low=low, high=high))
        return
    given = block.sequence("start")
    if not given:
        raise RecipeError(f"{block.place / 'start'}: an empty list; give a number, or one for each beginning")
    each = Block({str(i): value for i, value in enumerate(given)}, block.place / "start", [str(i) for i in range(len(given))])
    yield from (float(each.number(str(i), low=low, high=high)) for i in range(len(given)))


def _check_starts(space: Space) -> None:
    """Several beginnings are as many everywhere: the first number of one list belongs to the first of each other."""
    lengths = {len(p.starts): p.name for p in space.parameters if len(p.starts) > 1}
    if len(lengths) > 1:
        (few, one), (many, other), *_ = sorted(lengths.items())
        raise RecipeError(f"{space.place}: {one} has {few} starts and {other} {many}; give as many everywhere, or one number")


def _check_ties(template: Mapping[str, Any], place: Place) -> None:
    """Ranges that are tied are alike, but that one may have rows where another has columns."""
    first: dict[str, dict[str, Any]] = {}
    for tree in _tied(template):
        rest = {key: value for key, value in tree.items() if key not in ("rows", "columns")} | {"groups": groups_of(tree)[1]}
        if first.setdefault(tree["tied"], rest) != rest:
            raise RecipeError(
                f"{place}: the ranges with `tied: {tree['tied']}` are not alike; give all the same ends, points and start"
            )


def _tied(tree: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(tree, Mapping) and "range" in tree:
        yield from [tree] * ("tied" in tree)
    elif isinstance(tree, Mapping | list):
        for item in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _tied(item)


def path_of(tree: Mapping[str, Any], path: str) -> str:
    """What the names of a range's parameters begin with: its place, or what it is tied by."""
    return f"tied.{tree['tied']}" if "tied" in tree else path


def groups_of(tree: Mapping[str, Any]) -> tuple[str, int]:
    """What a range has numbers for, groups of rows or of columns, and how many."""
    across = "columns" if "columns" in tree else "rows"
    return across, tree.get(across, 1)


def _names(path: str, groups: int, points: int) -> list[str]:
    return [
        path + (f"#{group}" if groups > 1 else "") + (f"@{point}" if points > 1 else "")
        for group in range(groups)
        for point in range(points)
    ]


def _choice(tree: Mapping[str, Any], path: str, place: Place) -> Parameter:
    options = tree["choice"]
    if not isinstance(options, list) or not options:
        raise RecipeError(f"{place}: `choice` takes a list of at least one option")
    if len(tree) > 1:
        for i, option in enumerate(options):
            if not isinstance(option, Mapping):
                raise RecipeError(
                    f"{place / 'choice' / i}: an option beside other keys must be a mapping, to be joined with them"
                )
            if twice := set(option) & set(tree):
                raise RecipeError(f"{place / 'choice' / i}: {', '.join(sorted(twice))} stands beside the choice and inside it")
    return Parameter(_join(path, "choice"), 0, len(options) - 1, (0,), options=len(options))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _fill(tree: Any, path: str, values: Mapping[str, float | int]) -> Any:
    """The tree with every range and choice replaced by its value."""
    if isinstance(tree, list):
        return [_fill(item, f"{path}[{i}]", values) for i, item in enumerate(tree)]
    if not isinstance(tree, Mapping):
        return tree
    if "range" in tree:
        return _value(tree, path, values)
    if "choice" not in tree:
        return {key: _fill(item, _join(path, str(key)), values) for key, item in tree.items()}
    name = _join(path, "choice")
    index = int(values[name])
    chosen = _fill(tree["choice"][index], f"{name}[{index}]", values)
    rest = {key: _fill(item, _join(path, str(key)), values) for key, item in tree.items() if key != "choice"}
    return {**rest, **chosen} if rest else chosen


def _value(tree: Mapping[str, Any], path: str, values: Mapping[str, float | int]) -> Any:
    (across, count), points = groups_of(tree), int(tree.get("points", 1))
    numbers = [float(values[name]) for name in _names(path_of(tree, path), count, points)]
    groups = [numbers[i * points] if points == 1 else numbers[i * points : (i + 1) * points] for i in range(count)]
    return {across: groups} if count > 1 else groups[0]
