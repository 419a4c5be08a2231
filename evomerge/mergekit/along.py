"""What one vector is in nuslerp: two flags in mergekit, of which the second has a say where the first is false; here a word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evomerge.recipe import Cases, Steps


def word(flatten: Any, row_wise: Any) -> Any:
    """Our word for two flags, which may vary by depth and name; its rows are our columns: it names the axis summed over."""
    return _instead(flatten, "tensor", _instead(row_wise, "columns", "rows"))


def _instead(flag: Any, yes: Any, no: Any) -> Any:
    """The same with two values in place of true and false."""
    if isinstance(flag, list):
        return [_instead(each, yes, no) for each in flag]
    if isinstance(flag, Mapping):
        return {**flag, "value": _instead(flag["value"], yes, no)}
    return yes if flag else no


def _flatten(value: Any) -> Any:
    """Whether a vector is the whole tensor."""
    if isinstance(value, Steps):
        return _steps([_flatten(each) for each in value.values])
    if isinstance(value, Cases):
        return _cases([(match, _flatten(each)) for match, each in value.cases])
    return value == "tensor"


def _row_wise(value: Any) -> Any:
    """Whether a vector is a column; None where it is the whole tensor, and this has no say."""
    if isinstance(value, Steps):
        told = [_row_wise(each) for each in value.values]
        known = next((each for each in told if each is not None), None)
        return _steps([known if each is None else each for each in told])
    if isinstance(value, Cases):
        cases = [(match, _row_wise(each)) for match, each in value.cases]
        return _cases([(match, each) for match, each in cases if each is not None])
    return None if value == "tensor" else value == "columns"


def _steps(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else Steps(tuple(values))


def _cases(cases: list[tuple[str, Any]]) -> Any:
    if not cases:
        return None
    return cases[0][1] if all(value == cases[0][1] for _, value in cases) else Cases(tuple(cases))


FLAGS: dict[str, Callable[[Any], Any]] = {"nuslerp_flatten": _flatten, "nuslerp_row_wise": lambda v: _row_wise(v) or False}
