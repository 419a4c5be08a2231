"""YAML in and out, strictly: YAML 1.2 numbers, no duplicate keys, unknown keys refused with the nearest known one named."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import DocumentError

REQUIRED: Any = object()
LONG = 8  # numbers of a list from which on it is written apart, as many a line
MARK = "\ue000"  # stands for such a list; a character for private use


@dataclass(frozen=True)
class Place:
    """Where in which file a value stands; printed in front of every complaint about it."""

    file: str
    path: str = ""

    def __truediv__(self, key: str | int) -> Place:
        step = f"[{key}]" if isinstance(key, int) else f".{key}" if self.path else key
        return Place(self.file, self.path + step)

    def __str__(self) -> str:
        return f"{self.file}: {self.path}" if self.path else self.file


class Block:
    """A mapping read key by key; a key that nobody knows is refused when the block is opened."""

    def __init__(self, data: object, place: Place, known: Iterable[str]) -> None:
        if not isinstance(data, Mapping):
            raise DocumentError(f"{place}: expected a mapping, found {describe(data)}")
        self.data: Mapping[str, Any] = data
        self.place = place
        refuse_unknown(data, place, list(known))

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def get(self, key: str, default: Any = REQUIRED) -> Any:
        """The raw value under `key`; null counts as absent."""
        value = self.data.get(key)
        if value is None and default is REQUIRED:
            raise DocumentError(f"{self.place}: {key!r} is missing")
        return default if value is None else value

    def text(self, key: str, default: Any = REQUIRED, *, among: Sequence[str] = ()) -> Any:
        value = self.get(key, default)
        if value is default:
            return value
        if not isinstance(value, str):
            raise DocumentError(f"{self.place / key}: expected text, found {describe(value)}")
        if among and value not in among:
            raise DocumentError(f"{self.place / key}: {value!r} is not known{nearest(value, among)}")
        return value

    def number(self, key: str, default: Any = REQUIRED, *, low: float = -math.inf, high: float = math.inf) -> Any:
        value = self.get(key, default)
        return value if value is default else number(value, self.place / key, low=low, high=high)

    def integer(self, key: str, default: Any = REQUIRED, *, low: int = 0) -> Any:
        value = self.get(key, default)
        if value is default:
            return value
        if isinstance(value, float) and value.is_integer():  # 2e6 is a float in YAML and a count to a reader
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise DocumentError(f"{self.place / key}: expected a whole number, found {describe(value)}")
        return int(number(value, self.place / key, low=low))

    def flag(self, key: str, default: Any = REQUIRED) -> Any:
        value = self.get(key, default)
        if value is default or isinstance(value, bool):
            return value
        raise DocumentError(f"{self.place / key}: expected true or false, found {describe(value)}")

    def mapping(self, key: str, default: Any = REQUIRED) -> Any:
        value = self.get(key, default)
        if value is default or isinstance(value, Mapping):
            return value
        raise DocumentError(f"{self.place / key}: expected a mapping, found {describe(value)}")

    def sequence(self, key: str, default: Any = REQUIRED) -> Any:
        value = self.get(key, default)
        if value is default or isinstance(value, list):
            return value
        raise DocumentError(f"{self.place / key}: expected a list, found {describe(value)}")


def number(value: object, place: Place, *, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a finite number in [low, high]; text that looks like a number is named as such."""
    if isinstance(value, str):
        raise DocumentError(f"{place}: {value!r} is text, a number is expected: write it without quotes, as 0.5 or 2e6")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DocumentError(f"{place}: expected a number, found {describe(value)}")
    if not math.isfinite(value):
        raise DocumentError(f"{place}: {value} is not a finite number")
    if not low <= value <= high:
        raise DocumentError(f"{place}: {value:g} is outside [{low:g}, {high:g}]")
    return value


def refuse_unknown(data: Mapping[str, Any], place: Place, known: Sequence[str]) -> None:
    for key in data:
        if key not in known:
            raise DocumentError(f"{place}: unknown key {key!r}{nearest(str(key), known)}")


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of an error message: the word that was probably meant, then all that are known."""
    close = difflib.get_close_matches(word, known, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{guess} (known: {', '.join(known)})"


def describe(value: object) -> str:
    if value is None:
        return "nothing"
    kinds = {bool: "true or false", str: "text", list: "a list", dict: "a mapping", int: "a number", float: "a number"}
    shown = repr(value)
    return f"{kinds.get(type(value), type(value).__name__)} {shown if len(shown) < 40 else shown[:37] + '…'}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2: `no` is text, `2e6` a number, `8:30` text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen and key_node.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:merge"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_SCALARS = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
]
for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)
# YAML 1.2 integers are decimal: PyYAML's constructor would read 010 as octal and 1:30 as 90
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value, 16 if "x" in node.value else 10))


def read_yaml(path: str | Path) -> Any:
    """The plain data of one YAML file; raises DocumentError with the line where it breaks."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DocumentError(f"{path}: cannot be read ({reason})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    """The plain data of a YAML text; `name` is what errors call it."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise DocumentError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # in C where PyYAML was built with it
    """Short lists on one line, mappings in the order they were given, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers  # quotes exactly what the loader would take for something else
_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=_is_short(data))
)


def _is_short(data: list[Any]) -> bool:
    return all(isinstance(item, int | float | str | None) for item in data)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(float(value)))  # repr survives a round trip bit for bit


_Dumper.add_representer(float, _represent_float)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    breaks = any(char in value for char in "\x85\u2028\u2029")  # line breaks to YAML 1.1, folded away unless escaped
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if breaks else None)


_Dumper.add_representer(str, _represent_text)


def dump_yaml(data: object) -> str:
    """Plain data as YAML that `read_yaml` gives back unchanged."""
    lists: list[str] = []
    text = _dumped(_without_long_lists(data, lists))
    parts = text.split(MARK)
    if len(parts) != len(lists) + 1:
        return _dumped(data)  # the mark is a text of the data itself
    return "".join(part for pair in zip(parts, [*lists, ""], strict=True) for part in pair)


def _dumped(data: object) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _without_long_lists(data: Any, lists: list[str]) -> Any:
    """The data with a mark for each long list of floats, whose texts are put into `lists`: PyYAML takes ten times as long."""
    if isinstance(data, Mapping):
        return {key: _without_long_lists(value, lists) for key, value in data.items()}
    if not isinstance(data, list):
        return data
    if len(data) < LONG or not all(type(item) is float and math.isfinite(item) for item in data):
        return [_without_long_lists(item, lists) for item in data]
    numbers = list(map(repr, data))  # repr survives a round trip bit for bit
    lists.append("[" + f",\n{' ' * 16}".join(", ".join(numbers[i : i + LONG]) for i in range(0, len(numbers), LONG)) + "]")
    return MARK
