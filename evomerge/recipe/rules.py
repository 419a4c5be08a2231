"""Rules read strictly and written again: a number, a curve over depth, groups of rows, or cases by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evomerge.document import REQUIRED, Block, Place, nearest, number
from evomerge.errors import RecipeError
from evomerge.recipe.dials import COUNTS, DIALS, INCLUDES_BASE, METHOD_KNOBS, SYNONYMS, Dial, dial_of
from evomerge.recipe.parts import Cases, Curve, Knob, Rule


def read_rule(data: object, place: Place, sources: tuple[str, ...]) -> Rule:
    block = Block(data, place, ["match", "method", "sources", *DIALS])
    method = block.text("method", among=tuple(METHOD_KNOBS))
    taken = METHOD_KNOBS[method]
    for knob in block.data:
        if knob in DIALS and knob not in taken:
            _refuse_knob(knob, method, place)
    names = tuple(block.sequence("sources", list(_named(block, sources))))
    _check_sources(names, method, sources, place)
    knobs = {knob: _knob(block, knob, default, method, names) for knob, default in taken.items()}
    if knobs.get("between") == "deltas" and "base" in names:
        raise RecipeError(f"{place}: between deltas there is nothing of the base's; take it out of the sources")
    return Rule(block.text("match"), method, names, knobs)


def _refuse_knob(knob: str, method: str, place: Place) -> None:
    taken = METHOD_KNOBS[method]
    twin = SYNONYMS.get(knob)
    if twin in taken:
        raise RecipeError(
            f"{place}: {method} takes {twin!r}, not {knob!r}: density is the share kept, drop_rate the share dropped"
        )
    raise RecipeError(f"{place}: {method} takes no {knob!r}{nearest(knob, tuple(taken))}")


def _named(block: Block, sources: tuple[str, ...]) -> tuple[str, ...]:
    """The sources of a rule that does not list them: all, and the base where a weight names it."""
    weight = block.get("weight", None)
    return ("base", *sources) if isinstance(weight, Mapping) and "base" in weight else sources


def _check_sources(names: tuple[str, ...], method: str, sources: tuple[str, ...], place: Place) -> None:
    known = ("base", *sources) if method in INCLUDES_BASE else sources
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
    if dial.kind == "flag":
        if isinstance(block.get(knob, default), list):
            return _cases(block.sequence(knob), place, default, _flag)
        return bool(block.flag(knob, default))
    if dial.kind == "count":
        return int(block.integer(knob, default, low=int(dial.low)))
    if dial.kind == "word":
        return str(block.text(knob, default, among=dial.words))
    value = block.get(knob, None if default is REQUIRED else default)
    if value is None:
        raise RecipeError(f"{block.place}: {method} needs {knob!r}: a number{', or one for each source' * dial.per_source}")
    if not dial.per_source:
        return _number(value, place, dial, default)
    if not isinstance(value, Mapping) or "rows" in value:
        return {name: _number(value, place, dial, default) for name in names}
    for name in value:
        if name not in names:
            raise RecipeError(f"{place}: {name!r} is not a source of this rule{nearest(str(name), names)}")
    if missing := [name for name in names if name not in value]:
        raise RecipeError(f"{place}: nothing for {', '.join(missing)}; give each source of the rule a number (0 leaves it out)")
    return {name: _number(value[name], place / name, dial, default) for name in names}


def _number(data: Any, place: Place, dial: Dial, default: Any) -> Curve | Cases:
    if isinstance(data, list) and any(isinstance(item, Mapping) for item in data):
        return _cases(data, place, default, lambda value, where: _curve(value, where, dial))
    return _curve(data, place, dial)


def _flag(data: Any, place: Place) -> bool:
    return bool(Block({"value": data}, place, ["value"]).flag("value"))


def _cases(data: list[Any], place: Place, default: Any, parse: Callable[[Any, Place], Curve | bool]) -> Cases:
    """`[{match: PATTERN, value: ..}, .., {value: ..}]`; where none matches, the method's own default holds."""
    blocks = [Block(item, place / i, ["match", "value"]) for i, item in enumerate(data)]
    cases = [(block.text("match", "*"), parse(block.get("value"), block.place / "value")) for block in blocks]
    if default is not REQUIRED and cases[-1][0] != "*":
        cases.append(("*", parse(default, place)))
    return Cases(tuple(cases))


def _curve(data: Any, place: Place, dial: Dial) -> Curve:
    rows = Block(data, place, ["rows"]).sequence("rows") if isinstance(data, Mapping) else [data]
    points = tuple(_points(row, place, dial) for row in rows)
    if not points or not all(points):
        raise RecipeError(f"{place}: an empty list; give one number, or control points from the first layer to the last")
    return Curve(points)


def _points(data: Any, place: Place, dial: Dial) -> tuple[float, ...]:
    values = data if isinstance(data, list) else [data]
    if all(type(value) is float and dial.low <= value <= dial.high for value in values):
        return tuple(values)  # as nearly always: a search reads hundreds for every recipe
    return tuple(float(number(value, place, low=dial.low, high=dial.high)) for value in values)


def rule_data(rule: Rule) -> dict[str, Any]:
    knobs = {
        name: {source: curve.to_data() for source, curve in knob.items()} if isinstance(knob, Mapping)
        else knob.to_data() if isinstance(knob, Curve | Cases) else knob
        for name, knob in rule.knobs.items()
    }  # fmt: skip
    return {"match": rule.match, "method": rule.method, "sources": list(rule.sources), **knobs}
