"""What to merge: a recipe is pure data, strict when read, the same bytes when written, and hashed.

    recipe:
      base: zoo:models/base
      sources: {sort: zoo:models/sort, reverse: zoo:models/reverse}
      rules:                                        # first match wins
        - {match: "*mlp*", method: ties, weight: {sort: 0.6, reverse: [0.2, 0.8]}, density: 0.3}
        - {match: "*", method: linear, weight: 1.0}

A number may be a list: control points of a curve over depth. `{rows: [..]}` gives a number to each of equal groups of rows,
`{columns: [..]}` of columns: heads or hidden units, say, of which one layer has rows and the next columns.
A list of `{match: PATTERN, value: NUMBER}` says a number by the name of the tensor: the first that matches. What is true or false
may vary as well: `normalize: [true, false]` is true until the last layer. `base: sort` in a rule takes deltas from that model.

    slices:                                         # the layers of the merged model, any of any model in any order
      - {source: sort, layers: [0, 4]}              # a copy of layers 0 to 3
      - {layers: {base: [2, 6], sort: [2, 6]}, rules: [{match: "*", method: slerp, t: [0.2, 0.8]}], scale: 0.9}

Of several towers one is stacked: what a rule with `stacked: false` is the first to match is merged as it lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.document import Block, Place, dump_yaml, read_yaml
from evomerge.errors import RecipeError
from evomerge.recipe.blocks import (
    read_chat_template,
    read_context,
    read_heal,
    read_slices,
    read_source,
    read_tokenizer,
    slice_data,
)
from evomerge.recipe.dials import (
    COUNTS,
    DIALS,
    EITHER_WAY,
    INCLUDES_BASE,
    METHOD_KNOBS,
    OWN_DIALS,
    SYNONYMS,
    WITHOUT_BASE,
    Dial,
    dial_of,
)
from evomerge.recipe.parts import (
    AUTO,
    DTYPES,
    HUB_ID,
    MIXTURES,
    ROPE_TYPES,
    Cases,
    Context,
    Curve,
    Heal,
    Knob,
    Layers,
    Rule,
    Slice,
    Source,
    Steps,
    Tokenizer,
    TokenRow,
    locate,
)
from evomerge.recipe.rules import read_rule, rule_data

__all__ = [
    "AUTO",
    "COUNTS",
    "DIALS",
    "DTYPES",
    "EITHER_WAY",
    "HUB_ID",
    "INCLUDES_BASE",
    "METHOD_KNOBS",
    "MIXTURES",
    "OWN_DIALS",
    "ROPE_TYPES",
    "SYNONYMS",
    "WITHOUT_BASE",
    "Cases",
    "Context",
    "Curve",
    "Dial",
    "Heal",
    "Knob",
    "Layers",
    "Recipe",
    "Rule",
    "Slice",
    "Source",
    "Steps",
    "TokenRow",
    "Tokenizer",
    "dial_of",
    "locate",
]


@dataclass(frozen=True)
class Recipe:
    """What to merge, and how."""

    base: Source
    sources: Mapping[str, Source] = field(hash=False)
    rules: tuple[Rule, ...]
    context: Context | None = None
    heal: Heal | None = None
    tokenizer: Tokenizer | None = None
    dtype: str | None = None  # of the written weights; None keeps each tensor's own
    seed: int = 0
    slices: tuple[Slice, ...] = ()  # none: the base's layers as they are
    chat_template: str | None = None  # Jinja, or "auto"; None keeps that of the tokenizer

    @classmethod
    def from_data(cls, data: object, place: Place, root: Path | None = None) -> Recipe:
        """A recipe from plain data; relative paths are taken from `root`. Raises RecipeError or DocumentError."""
        block = Block(
            data, place, ["base", "sources", "rules", "slices", "context", "heal", "tokenizer", "chat_template", "dtype", "seed"]
        )

        sources = {
            str(name): read_source(model, place / "sources" / str(name), root)
            for name, model in block.mapping("sources", *[{}] * ("slices" in block)).items()
        }
        if "base" in sources:
            raise RecipeError(f"{place / 'sources'}: 'base' is the name of the base itself; call this source something else")
        if not sources and "slices" not in block:
            raise RecipeError(f"{place / 'sources'}: no source; name at least one model to merge into the base")
        given = block.sequence("rules", *[[]] * ("slices" in block))
        rules = tuple(read_rule(rule, place / "rules" / i, tuple(sources)) for i, rule in enumerate(given))
        slices = read_slices(block, tuple(sources))
        _check_stacked(rules, slices, place)
        return cls(
            base=read_source(block.get("base"), place / "base", root),
            sources=sources,
            rules=rules,
            context=read_context(block),
            heal=read_heal(block, tuple(sources), root),
            tokenizer=read_tokenizer(block, tuple(sources)),
            dtype=block.text("dtype", None, among=DTYPES),
            seed=block.integer("seed", 0),
            slices=slices,
            chat_template=read_chat_template(block),
        )

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """The recipe in a YAML file: the file itself, or what stands under its key `recipe`."""
        data, place = read_yaml(path), Place(str(path))
        if isinstance(data, Mapping) and "recipe" in data:
            data, place = data["recipe"], place / "recipe"
        return cls.from_data(data, place, Path(path).parent)

    def to_data(self) -> dict[str, Any]:
        """Plain data that `from_data` turns back into an equal recipe."""
        data: dict[str, Any] = {
            "base": self.base.to_data(),
            "sources": {name: source.to_data() for name, source in self.sources.items()},
            "rules": [rule_data(rule) for rule in self.rules],
            "slices": [slice_data(part) for part in self.slices] or None,
            "context": self.context and {k: v for k, v in vars(self.context).items() if v is not None},
            "heal": self.heal and {**vars(self.heal), "teachers": dict(self.heal.teachers)},
            "tokenizer": self.tokenizer and self.tokenizer.to_data(),
            "chat_template": self.chat_template,
            "dtype": self.dtype,
            "seed": self.seed,
        }
        return {key: value for key, value in data.items() if value is not None}

    def to_yaml(self) -> str:
        return dump_yaml({"recipe": self.to_data()})

    @property
    def all_rules(self) -> dict[str, Rule]:
        """Every rule by its place in the recipe."""
        inner = {f"slices[{i}].rules[{j}]": r for i, part in enumerate(self.slices) for j, r in enumerate(part.rules)}
        return {**inner, **{f"rules[{i}]": rule for i, rule in enumerate(self.rules)}}

    def stacks(self, name: str) -> bool:
        """Whether the slices are about a tensor: unless the first rule that matches it says `stacked: false`."""
        return next((rule.stacked for rule in self.rules if rule.matches(name)), True)

    def key(self, fingerprints: Mapping[str, str] | None = None) -> str:
        """SHA-256 of all that decides the merged bytes: the recipe without its paths, and a fingerprint of each file set."""
        data = self.to_data()
        data["base"], data["sources"] = None, sorted(self.sources)
        if self.heal:
            data["heal"] = {**data["heal"], "texts": None}
        canonical = json.dumps([data, dict(fingerprints or {})], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _check_stacked(rules: tuple[Rule, ...], slices: tuple[Slice, ...], place: Place) -> None:
    """Only beside a stack is anything not stacked, and a slice's own rules are about its layers."""
    for i, part in enumerate(slices):
        for j in (j for j, rule in enumerate(part.rules) if not rule.stacked):
            raise RecipeError(f"{place / 'slices' / i / 'rules' / j / 'stacked'}: a slice is its layers; say it in `rules`")
    aside = next((i for i, rule in enumerate(rules) if not rule.stacked), None)
    if aside is not None and not slices:
        raise RecipeError(f"{place / 'rules' / aside / 'stacked'}: nothing is stacked without `slices`; leave it out")
