"""Rules read strictly and written again: a number, a curve over depth, groups of rows or columns, or cases by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from evomerge.document import REQUIRED, Block, Place, nearest, number
from evomerge.errors import RecipeError
from evomerge.recipe.dials import COUNTS, DIALS, INCLUDES_BASE, METHOD_KNOBS, SYNONYMS, WITHOUT_BASE, Dial, dial_of
from evomerge.recipe.parts import Cases, Choice, Curve, Knob, Rule, Steps, plain


def read_rule(data: object, place: Place, sources: tuple[str, ...]) -> Rule:
    block = Block(data, place, ["match", "method", "sources", "base", "stacked", *DIALS])
    method = block.text("method", among=tuple(METHOD_KNOBS))
    taken = METHOD_KNOBS[method]
    for knob in block.data:
        if knob in DIALS and knob not in taken:
            _refuse_knob(knob, method, place)
    base: str = block.text("base", "base", among=("base", *sources))
    names = tuple(block.sequence("sources", _named(block, sources, base)))
    _check_sources(names, method, sources, base, place)
    knobs = {knob: _knob(block, knob, default, method, names) for knob, default in taken.items()}
    _check_base(base, method, names, knobs, place)
    return Rule(block.text("match"), method, names, knobs, base, bool(block.flag("stacked", True)))


def _check_base(base: str, method: str, names: tuple[str, ...], knobs: Mapping[str, Knob], place: Place) -> None:
    """Only what is merged between deltas has a base, which is then none of its sources."""
    if knobs.get("between") == "deltas" and base in names:
        raise RecipeError(f"{place}: between deltas there is nothing of the base's; take it out of the sources")
    if base != "base" and (method in WITHOUT_BASE or knobs.get("between") == "models"):
        raise RecipeError(f"{place / 'base'}: {method} is between whole models here and takes deltas from none; leave it out")


def _refuse_knob(knob: str, method: str, place: Place) -> None:
    taken = METHOD_KNOBS[method]
    twin = SYNONYMS.get(knob)
    if twin in taken:
        raise RecipeError(
            f"{place}: {method} takes {twin!r}, not {knob!r}: density is the share kept, drop_rate the share dropped"
        )
    raise RecipeError(f"{place}: {method} takes no {knob!r}{nearest(knob, tuple(taken))}")


def _named(block: Block, sources: tuple[str, ...], base: str) -> list[str]:
    """The sources of a rule that does not list them: all, and the base where a weight names it."""
    weight = block.get("weight", None)
    named = ("base", *sources) if isinstance(weight, Mapping) and "base" in weight else sources
    return [name for name in named if base == "base" or name != base]


def _check_sources(names: tuple[str, ...], method: str, sources: tuple[str, ...], base: str, place: Place) -> None:
    known = tuple(name for name in ("base", *sources) if method in INCLUDES_BASE or name != base)
    for name in names:
        if name not in known:
            raise RecipeError(f"{place / 'sources'}: {name!r} is not a source of {method} here{nearest(str(name), known)}")
    low, high = COUNTS.get(method, (1, 99))
    if not low <= len(names) <= high:
        wanted = f"{'exactly' if low == high else 'at least'} {('one source', 'two sources')[low - 1]}"
        raise RecipeError(
            f"{place}: {method} takes {wanted}, here it has {len(names)}: add `sources: [{', '.join(known[-low:])}]`"
        )
    if len(set(names)) < len(names):
        raise RecipeError(f"{place / 'sources'}: a source stands twice")


def _knob(block: Block, knob: str, default: Any, method: str, names: tuple[str, ...]) -> Knob:
    dial, place = dial_of(method, knob), block.place / knob
    if dial.kind != "number":
        return _choice(block, knob, default, dial) if dial.varies else _one(block, knob, default, dial)
    value = block.get(knob, None if default is REQUIRED else default)
    if value is None:
        raise RecipeError(f"{block.place}: {method} needs {knob!r}: a number{', or one for each source' * dial.per_source}")
    if not dial.per_source:
        return _number(value, place, dial, default)
    if not isinstance(value, Mapping) or "rows" in value or "columns" in value:
        return {name: _number(value, place, dial, default) for name in names}
    for name in value:
        if name not in names:
            raise RecipeError(f"{place}: {name!r} is not a source of this rule{nearest(str(name), names)}")
    if missing := [name for name in names if name not in value]:
        raise RecipeError(f"{place}: nothing for {', '.join(missing)}; give each source of the rule a number (0 leaves it out)")
    return {name: _number(value[name], place / name, dial, default) for name in names}


def _number(data: Any, place: Place, dial: Dial, default: Any) -> Curve | Cases:
    if isinstance(data, list) and any(isinstance(item, Mapping) for item in data):
        return _cases(data, place, default, lambda block: _curve(block.get("value"), block.place / "value", dial))
    return _curve(data, place, dial)


def _choice(block: Block, key: str, default: Any, dial: Dial) -> Choice:
    """One value, steps over depth, or cases by name; each step and case may be any of these again."""
    data, place = block.get(key, default), block.place / key
    if isinstance(data, list) and any(isinstance(item, Mapping) for item in data):
        return _cases(data, place, default, lambda block: _choice(block, "value", default, dial))
    if not isinstance(data, list) or not data or dial.kind == "count":
        return _one(block, key, default, dial)
    blocks = [Block({"value": item}, place / i, ["value"]) for i, item in enumerate(data)]
    return Steps(tuple(_choice(block, "value", default, dial) for block in blocks))


def _one(block: Block, key: str, default: Any, dial: Dial) -> bool | int | str:
    if dial.kind == "count":
        return int(block.integer(key, default, low=int(dial.low)))
    return bool(block.flag(key, default)) if dial.kind == "flag" else str(block.text(key, default, among=dial.words))


def _cases(data: list[Any], place: Place, default: Any, parse: Callable[[Block], Curve | Choice]) -> Cases:
    """`[{match: PATTERN, value: ..}, .., {value: ..}]`; where none matches, the method's own default holds."""
    blocks = [Block(item, place / i, ["match", "value"]) for i, item in enumerate(data)]
    cases = [(block.text("match", "*"), parse(block)) for block in blocks]
    if default is not REQUIRED and cases[-1][0] != "*":
        cases.append(("*", parse(Block({"value": default}, place, ["value"]))))
    return Cases(tuple(cases))


def _curve(data: Any, place: Place, dial: Dial) -> Curve:
    across: Literal["rows", "columns"] = "columns" if isinstance(data, Mapping) and "columns" in data else "rows"
    groups = Block(data, place, [across]).sequence(across) if isinstance(data, Mapping) else [data]
    points = tuple(_points(group, place, dial) for group in groups)
    if not points or not all(points):
        raise RecipeError(f"{place}: an empty list; give one number, or control points from the first layer to the last")
    return Curve(points, across if len(points) > 1 else "rows")


def _points(data: Any, place: Place, dial: Dial) -> tuple[float, ...]:
    values = data if isinstance(data, list) else [data]
    if all(type(value) is float and dial.low <= value <= dial.high for value in values):
        return tuple(values)  # as nearly always: a search reads hundreds for every recipe
    return tuple(float(number(value, place, low=dial.low, high=dial.high)) for value in values)


def rule_data(rule: Rule) -> dict[str, Any]:
    knobs = {
        name: {source: plain(value) for source, value in knob.items()} if isinstance(knob, Mapping) else plain(knob)
        for name, knob in rule.knobs.items()
    }
    base = {"base": rule.base} if rule.base != "base" else {}
    stacked = {} if rule.stacked else {"stacked": False}
    return {"match": rule.match, "method": rule.method, "sources": list(rule.sources), **base, **stacked, **knobs}
