"""The modules of models with several towers as mergekit 0.1.5 names them, and the tensors of each by their names.

Where it has a table of an architecture the names are the table's; elsewhere a module is what comes before the numbers of its
layers (`model.vision_tower.encoder.layers`), and `default` the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from evomerge.document import Place, nearest
from evomerge.errors import RecipeError
from evomerge.mergekit.models import model_type, towers

PARTS = {
    "multi_modal_projector": "*multi_modal_projector.*", "vision_tower": "*vision_tower.*", "vision_model": "*vision_model.*",
    "encoder": "*encoder.*", "shared": "*shared.*",
}  # fmt: skip
QWEN = {"multi_modal_projector": "*merger*", "vision_tower": "*visual.*"}
REST = ("default", "text_decoder", "decoder")  # of each family the one that has what the others leave
COMPLETE = [
    {"text_decoder", "multi_modal_projector", "vision_tower"}, {"text_decoder", "multi_modal_projector", "vision_model"},
    {"decoder", "encoder", "shared"},
]  # fmt: skip


def patterns(names: Iterable[str], place: Place, location: str) -> dict[str, str]:
    """For each module of a model a pattern of its tensors' names, in the order in which rules are asked.

    Raises RecipeError for a name that mergekit does not know, and where it would write a model without some of its tensors.
    """
    given = set(names)
    for name in sorted(given):
        if name not in (*PARTS, *REST) and "." not in name:
            raise RecipeError(f"{place}: mergekit knows no module {name!r}{nearest(name, [*REST, *PARTS])}")
    if (missing := _missing(given, location)) or (given & {*PARTS, *REST} - {"default"} and given not in COMPLETE):
        rest = ", ".join(sorted(missing)) or "those of one family"
        raise RecipeError(f"{place}: mergekit writes no tensor of a module that is not named; add {rest}")
    known = PARTS | QWEN if model_type(location).startswith("qwen") else PARTS
    found = {name: f"{name}.*" for name in sorted(given, key=len, reverse=True) if "." in name}
    return found | {name: known[name] for name in PARTS if name in given} | {name: "*" for name in REST if name in given}


def names_of(matches: Sequence[str], location: str) -> dict[str, str]:
    """The modules whose patterns these are, in their order; none where mergekit has no names for them."""
    by_tower = ["default" if match == "*" else match.removesuffix(".*") for match in matches]
    for names in (*COMPLETE, by_tower):
        try:
            found = patterns(names, Place("modules"), location)
        except RecipeError:
            continue
        if list(found.values()) == list(matches):
            return found
    return {}


def layers_of(match: str, before: Iterable[str], location: str) -> int | None:
    """How many layers a module has, whose tensors are those of `match` that no pattern `before` takes; None where unknown."""
    counts = [
        count
        for tower, count in towers(location).items()
        if fnmatchcase(f"{tower}.0.", match) and not any(fnmatchcase(f"{tower}.0.", other) for other in before)
    ]
    return max(counts, default=None)


def _missing(given: set[str], location: str) -> set[str]:
    """What has to be named beside these; nothing too where they belong to no family together."""
    if any("." in name for name in given):
        return {"default", *towers(location)} - given
    return min((whole - given for whole in COMPLETE if given <= whole), key=len, default=set())
