"""How mergekit names models: a path or a hub id, `model+lora`, a mapping of both; and where they lie."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.document import Block, Place, describe
from evomerge.errors import RecipeError
from evomerge.recipe import HUB_ID

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Model:
    """A model, or an adapter on it."""

    path: str
    adapter: str | None = None

    def to_data(self) -> Any:
        return {"model": self.path, "adapter": self.adapter} if self.adapter else self.path


@dataclass
class Models:
    """The models of a file by the names that they get as sources; the base is `base`."""

    root: Path | None
    names: dict[Model, str] = field(default_factory=dict)

    def read(self, data: object, place: Place) -> Model:
        """A model as mergekit writes it. Raises RecipeError for what cannot be named here."""
        if isinstance(data, str):
            path, plus, adapter = data.partition("+")
            if "+" in adapter:
                raise RecipeError(f"{place}: {data!r} has more than one '+'; write it as model+adapter")
            return Model(self._path(path, place), self._path(adapter, place) if plus else None)
        if not isinstance(data, Mapping):
            raise RecipeError(f"{place}: expected a model, found {describe(data)}")
        block = Block(data, place, ["model", "lora", "override_architecture"])
        adapter = block.get("lora", None)
        model = self._path(block.get("model"), place / "model")
        return Model(model, self._path(adapter, place / "lora") if adapter is not None else None)

    def _path(self, data: object, place: Place) -> str:
        if isinstance(data, Mapping):
            block = Block(data, place, ["path", "revision"])
            data = block.text("path") + (f"@{block.text('revision')}" if "revision" in block else "")
        if not isinstance(data, str) or not data:
            raise RecipeError(f"{place}: expected the path of a model, found {describe(data)}")
        found = self._found(data)
        if found is None and not HUB_ID.match(data):
            raise RecipeError(f"{place}: {data!r} is no directory here, and no id of the hub; correct the path")
        return found or data

    def _found(self, path: str) -> str | None:
        """From where the command is run, as in mergekit; else beside the file."""
        places = [Path(path), *([self.root / path] if self.root else [])]
        return next((str(place.absolute()) for place in places if place.exists()), None)

    def name(self, model: Model) -> str:
        """The name of a model as a source: the last part of its path."""
        if model not in self.names:
            wanted = Path(model.adapter or model.path).name
            taken = {*self.names.values(), "base"}
            self.names[model] = next(n for n in (wanted, *(f"{wanted}-{i}" for i in range(2, 999))) if n not in taken)
        return self.names[model]

    def sources(self) -> dict[str, Any]:
        return {name: model.to_data() for model, name in self.names.items() if name != "base"}


def layer_count(location: str) -> int | None:
    """How many layers the config beside a model announces; None where there is none to read."""
    config = _config(location)
    inner = config.get("text_config", {})
    return next((int(each[key]) for each in (config, inner) for key in COUNTS if isinstance(each.get(key), int)), None)


def model_type(location: str) -> str:
    """What kind of model the config beside it announces; nothing where there is none to read."""
    return str(_config(location).get("model_type", ""))


def towers(location: str) -> dict[str, int]:
    """What comes before the numbers in the tensors' names of a model on disk, and how many there are; of none to read, none."""
    file = Path(location) / "model.safetensors"
    try:
        if file.is_file():
            with file.open("rb") as opened:
                names = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        else:
            names = json.loads((Path(location) / f"{file.name}.index.json").read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError):
        return {}
    numbered = {(found[1], found[2]) for found in (re.match(r"(.*?)\.(\d+)\.", name) for name in names) if found}
    return Counter(tower for tower, _ in numbered)


def _config(location: str) -> dict[str, Any]:
    try:
        config = json.loads((Path(location) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
