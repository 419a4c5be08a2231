"""One parameter of mergekit as it was set in several blocks, the nearest to the tensor first, becomes one knob."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.document import REQUIRED, Block, Place, describe, nearest
from evomerge.errors import RecipeError
from evomerge.mergekit import along
from evomerge.mergekit.parameters import PARAMETERS, Parameter, kept, to_glob

WORDS = {  # of YAML 1.1, which mergekit reads, and what it takes in quotes
    **dict.fromkeys(("yes", "on", "true", "y", "t", "1"), True), **dict.fromkeys(("no", "off", "false", "n", "f", "0"), False),
}  # fmt: skip
FLAGS = ("flatten", "row_wise")


@dataclass(frozen=True)
class Level:
    """A block of parameters, and where it stands."""

    data: Mapping[str, Any]
    place: Place

    @classmethod
    def of(cls, block: Block, method: str) -> Level:
        """The parameters of a block. Raises RecipeError for one that mergekit would drop in silence."""
        place = block.place / "parameters"
        data = block.mapping("parameters", {})
        known = PARAMETERS[method]
        for name in data:
            if name not in known and name != "int8_mask":
                raise RecipeError(f"{place}: {method} takes no {name!r}, mergekit drops it in silence{_elsewhere(name, known)}")
        return cls(data, place)


def _elsewhere(name: str, known: Mapping[str, Parameter]) -> str:
    takers = [method for method, taken in PARAMETERS.items() if name in taken]
    return f"; {', '.join(takers)} take{'s' * (len(takers) == 1)} it" if takers else nearest(name, list(known))


@dataclass
class Reader:
    """Knobs of a method out of the blocks of a mergekit file; `gradients` are seen on the way."""

    method: str
    gradients: bool = False
    idle: dict[str, str] = field(default_factory=dict)

    def knobs(self, shared: Sequence[Level], own: Mapping[str, Sequence[Level]]) -> dict[str, Any]:
        """Every knob that is set or that mergekit has another default for; `own` are the blocks of each source of the rule."""
        found: dict[str, Any] = {}
        for name, parameter in PARAMETERS[self.method].items():
            if parameter.idle:
                self._count_idle(name, parameter.idle, [*shared, *(level for levels in own.values() for level in levels)])
            elif parameter.scope == "shared":
                found |= self._kept(parameter, self._resolved(name, parameter, shared))
            else:
                values = {source: self._resolved(name, parameter, levels) for source, levels in own.items()}
                found |= self._per_source(name, parameter, values)
        if self.method == "nuslerp":
            flags = (self._resolved(f"nuslerp_{name}", PARAMETERS["nuslerp"][f"nuslerp_{name}"], shared) for name in FLAGS)
            found["along"] = along.word(*flags)
        return found

    def _count_idle(self, name: str, why: str, levels: Sequence[Level]) -> None:
        for level in levels:
            if name in level.data:
                self.idle.setdefault(name, why)

    def _kept(self, parameter: Parameter, value: Any) -> dict[str, Any]:
        return {} if value is None or parameter.knob == "along" else {parameter.knob: value}

    def _per_source(self, name: str, parameter: Parameter, values: Mapping[str, Any]) -> dict[str, Any]:
        if all(value is None for value in values.values()):
            return {}
        if parameter.knob == "scale":  # one source, and one number
            return {"scale": next(iter(values.values()))}
        return {parameter.knob: dict(values)}

    def _resolved(self, name: str, parameter: Parameter, levels: Sequence[Level]) -> Any:
        """The value, or cases by name; None where nothing is said anywhere."""
        cases: list[dict[str, Any]] = []
        for level in levels:
            for case in self._cases(level, name, parameter):
                cases.append(case)
                if case["match"] == "*":
                    return case["value"] if len(cases) == 1 else cases
        if parameter.default is REQUIRED:
            if not cases:
                raise RecipeError(f"{levels[-1].place}: {self.method} needs {name!r} for every model but the base; none is given")
            return cases
        if parameter.default is None:
            return cases or None
        default = kept(parameter.default) if parameter.rest else parameter.default
        return [*cases, {"match": "*", "value": default}] if cases else default

    def _cases(self, level: Level, name: str, parameter: Parameter) -> Iterator[dict[str, Any]]:
        place, setting = level.place / name, level.data.get(name)
        if setting is None or setting == []:
            return
        conditional = isinstance(setting, Mapping) or (isinstance(setting, list) and any(isinstance(s, Mapping) for s in setting))
        for i, entry in enumerate(setting if conditional and isinstance(setting, list) else [setting]):
            if not conditional:
                yield {"match": "*", "value": self._value(entry, place, parameter)}
                return
            block = Block(entry, place / i, ["filter", "value"])
            value = self._value(block.get("value"), block.place / "value", parameter)
            yield {"match": to_glob(block.text("filter", None)), "value": value}

    def _value(self, data: Any, place: Place, parameter: Parameter) -> Any:
        if data == []:
            raise RecipeError(f"{place}: an empty list; give one value, or several from the first layer to the last")
        value = _each(data, place, _flag if parameter.flag else _number)
        if isinstance(value, list) and all(each == value[0] for each in value):
            value = value[0]
        if parameter.knob == "max_iter" and isinstance(value, list):
            raise RecipeError(f"{place}: mergekit stops where a whole number between two layers' is none; give one number")
        self.gradients |= isinstance(value, list) and value[0] != value[-1]
        return kept(value) if parameter.rest else value


def _each(data: Any, place: Place, parse: Callable[[Any, Place], Any]) -> Any:
    return [parse(item, place / i) for i, item in enumerate(data)] if isinstance(data, list) else parse(data, place)


def _flag(data: Any, place: Place) -> bool:
    value = WORDS.get(data.lower(), data) if isinstance(data, str) else data
    if value not in (True, False):
        raise RecipeError(f"{place}: expected true or false, found {describe(data)}")
    return bool(value)


def _number(data: Any, place: Place) -> float | int:
    if isinstance(data, str):
        try:
            return float(data)
        except ValueError:
            pass
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise RecipeError(f"{place}: expected a number, found {describe(data)}")
    return data
