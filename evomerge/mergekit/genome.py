"""A genome of mergekit-evolve as an experiment: what it would evolve becomes ranges, its tasks a suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.document import Block, Place, describe
from evomerge.errors import RecipeError
from evomerge.mergekit.models import Models, layer_count
from evomerge.mergekit.parameters import to_glob
from evomerge.mergekit.tokenizer import from_blocks

GENOME = (
    "models", "merge_method", "base_model", "tokenizer_source", "layer_granularity", "normalize", "allow_negative_weights",
    "filters", "smooth",
)  # fmt: skip
TOP = ("genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template", "fewshot_as_multiturn")
METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
AVERAGING = ("ties", "dare_ties", "linear")  # divided by the sum of weights unless the genome says otherwise
RUNGS = (0.1, 0.4, 1.0)  # of the documents that mergekit-evolve would score every candidate on


def from_genome(data: Mapping[str, Any], place: Place, root: Path | None = None) -> tuple[dict[str, Any], list[str]]:
    """The experiment of a mergekit-evolve file as plain data, and what is read differently, a line each."""
    top = Block(data, place, TOP)
    block = Block(top.get("genome"), place / "genome", GENOME)
    notes = ["weights: searched from 0 to 1 (from -1 with allow_negative_weights); there without an end"]
    experiment = {"recipe": _recipe(block, Models(root)), "suite": _suite(top, notes), **_scoring(top)}
    if top.flag("random_init", False):
        notes.append("random_init: begins at the genome's usual start; take `search: {sampler: random}` for chance")
    if top.flag("shuffle", False):
        notes.append("shuffle: documents are split and shuffled by hash in any case")
    return experiment, notes


def _recipe(block: Block, models: Models) -> dict[str, Any]:
    method = block.text("merge_method", among=METHODS)
    listed = [models.read(item, block.place / "models" / i) for i, item in enumerate(block.sequence("models"))]
    base = models.read(block.get("base_model"), block.place / "base_model") if "base_model" in block else None
    if base is None and method not in ("linear", "slerp"):
        raise RecipeError(f"{block.place}: {method} adds to a base; name it as base_model")
    if method == "slerp" and (len(listed) != 2 or block.flag("smooth", False) or block.get("filters", None)):
        raise RecipeError(f"{block.place}: slerp takes two models, no filters and nothing smooth here")
    leading = base if base is not None and method != "slerp" else listed[0]
    models.names[leading] = "base"
    names = [models.name(model) for model in listed]
    sources = names if method == "linear" else [name for name in names if name != "base"]
    tokenizer = from_blocks(Block({"tokenizer_source": block.get("tokenizer_source", None)}, block.place, GENOME), models)
    told = {} if tokenizer is None else {"tokenizer": tokenizer}
    groups, size = _groups(block, leading.path)
    smooth = block.flag("smooth", False)
    rule = {"match": "*", "method": method, "sources": sources, **_knobs(block, method, sources, groups if smooth else 1)}
    everyone = ["base", *(name for name in names if name != "base")]
    parts = [{"layers": {name: [i * size, (i + 1) * size] for name in everyone}, "rules": [rule]} for i in range(groups)]
    body = {"rules": [rule]} if smooth or groups == 1 else {"rules": [], "slices": parts}
    return {"base": leading.to_data(), "sources": models.sources(), **body, "dtype": "bfloat16", **told}


def _groups(block: Block, model: str) -> tuple[int, int]:
    """How many groups of layers have numbers of their own, and how many layers each."""
    size = block.integer("layer_granularity", 0)
    if not size:
        return 1, 0
    layers = layer_count(model)
    if layers is None:
        raise RecipeError(f"{block.place / 'layer_granularity'}: how many layers has {model}? download it first")
    if layers % size:
        raise RecipeError(f"{block.place / 'layer_granularity'}: {size} does not divide the {layers} layers of {model}")
    return layers // size, size


def _knobs(block: Block, method: str, sources: list[str], points: int) -> dict[str, Any]:
    if method == "slerp":
        return {"t": {"range": [0.0, 1.0], "start": 0.5}}
    low = -1.0 if block.flag("allow_negative_weights", False) else 0.0
    weight = {"range": [low, 1.0], "start": round(1 / len(block.sequence("models")), 6)}
    knobs: dict[str, Any] = {"weight": weight}
    if method == "ties":
        knobs["density"] = {"range": [0.0, 1.0], "start": 1.0}
    if method == "dare_ties":
        knobs["drop_rate"] = {"range": [0.0, 0.99], "start": 0.0}
    if points > 1:
        knobs = {name: {**knob, "points": points} for name, knob in knobs.items()}
    filters = block.get("filters", None) or []
    if not isinstance(filters, list):
        raise RecipeError(f"{block.place / 'filters'}: expected a list of parts of names, found {describe(filters)}")
    normalize = block.flag("normalize", method in AVERAGING)
    own = {name: {source: _by_name(knob, filters) for source in sources} for name, knob in knobs.items()}
    return {**own, "normalize": normalize}


def _by_name(knob: dict[str, Any], filters: list[str]) -> Any:
    cases = [{"match": to_glob(filter_), "value": dict(knob)} for filter_ in filters]
    return [*cases, {"value": dict(knob)}] if filters else dict(knob)


def _suite(top: Block, notes: list[str]) -> dict[str, Any]:
    tasks = dict(_tasks(top, notes))
    suite: dict[str, Any] = {"tasks": tasks, "aggregate": "mean"}
    if "limit" in top:
        documents = top.integer("limit", low=1) * len(tasks)
        suite["rungs"] = sorted({max(len(tasks), round(share * documents)) for share in RUNGS})
    notes.append("tasks: split by hash into documents to search, to select and to certify on; there all are one")
    return suite


def _tasks(top: Block, notes: list[str]) -> Iterator[tuple[str, float]]:
    for i, item in enumerate(top.sequence("tasks")):
        place = top.place / "tasks" / i
        if isinstance(item, str):
            yield item, 1.0
            continue
        block = Block(item, place, ["name", "weight", "metric"])
        metric = block.text("metric", "acc,none")
        if metric.partition(",")[0] not in ("acc", "exact_match"):
            notes.append(f"{place / 'metric'}: {metric} there, here the task's own first metric")
        yield block.text("name"), float(block.number("weight", 1.0))


def _scoring(top: Block) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "num_fewshot" in top:
        options["num_fewshot"] = top.integer("num_fewshot")
    chat = top.flag("apply_chat_template", True)
    options |= {"apply_chat_template": True, "fewshot_as_multiturn": top.flag("fewshot_as_multiturn", True)} if chat else {}
    return {"scoring": {"lm_eval": options}} if options else {}
