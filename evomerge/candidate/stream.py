"""A recipe becomes a stream of merged tensors; what no recipe changes stays in memory between candidates."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge import kernels
from evomerge.candidate.beforehand import Beforehand, locations
from evomerge.candidate.chat import chat_files
from evomerge.candidate.checkpoint import Checkpoint, TensorInfo, digest
from evomerge.candidate.conveyor import Conveyor
from evomerge.candidate.finite import refuse_odd
from evomerge.candidate.placement import Key, Load, Room, Shelf
from evomerge.candidate.plan import Plan, Step, compare, resolve
from evomerge.candidate.views import stood_for, views
from evomerge.candidate.vocab import Realigned, refuse_strangers
from evomerge.errors import RecipeError
from evomerge.methods.inputs import Inputs, Place
from evomerge.methods.table import merge_tensor
from evomerge.recipe import Recipe, locate

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

BATCH = 1 << 28  # elements merged before the first of them is handed on
CARRIED = 1 << 26  # the same, where sources are carried to the device
Weights = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class Candidate:
    """A model: its config and a stream of its tensors, which can be run again."""

    config: Mapping[str, Any]
    weights: Weights
    key: str  # Recipe.key with the fingerprints of all its files
    manifest: Mapping[str, TensorInfo]  # what the stream will yield

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], key: str) -> Candidate:
        """A candidate whose tensors are there already: a healed one, or a parent."""
        manifest = {name: TensorInfo(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
        return cls(config, list(tensors.items()), key, manifest)


def materialize(recipe: Recipe, sources: Sources, *, hashed: bool = True) -> Candidate:
    """The model of a recipe; its tensors are merged one by one as the stream is read.

    Who compares no keys spares reading every file once more: without `hashed` the key is the recipe's alone.
    """
    seen = sources.seen(recipe)
    plan = sources.plan(seen)
    key = recipe.key(sources.fingerprints(recipe)) if hashed else recipe.key()
    return Candidate(plan.config, Merge(seen, plan, sources), key, plan.manifest)


@dataclass(frozen=True)
class Merge:
    """The stream behind a candidate: the steps of a plan, run in order."""

    recipe: Recipe
    plan: Plan
    sources: Sources = field(repr=False)
    targets: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def into(self, targets: Mapping[str, Tensor]) -> Merge:
        """The same stream, where each tensor that can be is written into its target's memory as it is merged."""
        return replace(self, targets=targets)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self.sources.settle(self.recipe, self.plan)
        beforehand = self.sources.beforehand
        trims = beforehand.trims(self.sources, self.recipe, self.plan)
        lengths = beforehand.lengths(self.sources, self.recipe, self.plan)
        for steps in self.sources.carried(self.recipe, self._batches()):
            with kernels.together():
                merged = [
                    self._run(step, {"threshold": trims.get(step.name), "lengths": lengths.get(step.name)}) for step in steps
                ]
            yield from ((step.name, _finished(step, tensor)) for step, tensor in zip(steps, merged, strict=True))

    def _batches(self) -> Iterator[list[Step]]:
        """One step after the other; on a GPU as many as BATCH allows, for one launch."""
        room = 0
        if kernels.side(torch.empty(0, device=self.sources.device)) == "triton":
            room = CARRIED if self.sources.shelf.streams else BATCH
        batch, held = list[Step](), 0
        for step in self.plan.steps:
            size = math.prod(step.info.shape)
            if batch and held + size > room:
                yield batch
                batch, held = [], 0
            batch.append(step)
            held += size
        if batch:
            yield batch

    @torch.no_grad()
    def _run(self, step: Step, known: Mapping[str, Any]) -> Tensor:
        if step.rule is None:
            return self.sources.copied(self.recipe, step)
        inputs, dtype = self.sources.inputs(self.recipe, step), TORCH_DTYPES[step.info.dtype]
        known = {**known, **self.sources.beforehand.measured(self.sources, self.recipe, step)}
        if step.scale != 1:  # rounded once, after it
            dtype = inputs.dtype
        with kernels.into(self.targets.get(step.name) if step.scale == 1 and not step.columns else None):
            return merge_tensor(step.method, inputs, {**step.knobs, **known}, dtype)


class Sources:
    """The models that recipes name, opened once.

    `resident` keeps tensors and tables of magnitudes for the next candidate, some eight bytes an element and source beside
    the tensors' own, twice that in plain torch: for a search. Otherwise each tensor is read, merged and dropped: for one
    merge of a large model. What the device does not hold of resident models is carried there for each candidate.
    """

    def __init__(self, *, resident: bool = False, device: str | torch.device = "cpu", room: Room | None = None) -> None:
        self.resident = resident
        self.device = torch.device(device)
        self.shelf = Shelf(self.device, room)
        self._settled: set[tuple[object, ...]] = set()
        self._carried: Mapping[Key, Tensor] = {}
        self._known: dict[tuple[str, ...], dict[Hashable, Any]] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self._unchanged: set[str] = set()
        self._fingerprints: dict[str, str] = {}
        self._doubts: dict[tuple[str, str, str, bool], list[str]] = {}
        self._inputs: dict[tuple[str, ...], Inputs] = {}
        self.beforehand = Beforehand()

    def checkpoint(self, location: str, role: str = "") -> Checkpoint:
        if location not in self._checkpoints:
            self._checkpoints[location] = Checkpoint.open(location, role)
        return self._checkpoints[location]

    def seen(self, recipe: Recipe) -> Recipe:
        """The recipe over its models as the merge sees them: see views.py. The same recipe where they are what lies on disk."""
        stand_ins, names = stood_for(recipe)
        if names["base"] not in self._checkpoints and names["base"] not in self._unchanged:
            models = {"base": self.checkpoint(recipe.base.location, "base")}
            models |= {name: self.checkpoint(source.location, f"sources.{name}") for name, source in recipe.sources.items()}
            found, alignment = views(recipe, models)
            if alignment:
                refuse_strangers(alignment)
            if all(found[role] is models[role] for role in models):
                self._unchanged.add(names["base"])
            else:
                self._checkpoints |= {names[role]: model for role, model in found.items()}
        return recipe if names["base"] in self._unchanged else stand_ins

    def tokenizer(self, recipe: Recipe) -> tuple[Path, dict[str, str]]:
        """The directory that the merged model's tokenizer is copied from, and the files that take another's place."""
        seen = self.checkpoint(self.seen(recipe).base.location)
        chat = chat_files(recipe.chat_template, (self.checkpoint(m.location) for m in (recipe.base, *recipe.sources.values())))
        if isinstance(seen, Realigned) and seen.alignment:
            return seen.alignment.models[seen.alignment.owner].path, {**seen.alignment.files(), **chat}
        return seen.path, chat

    def plan(self, recipe: Recipe) -> Plan:
        """The recipe's plan; that its models fit together is checked once for each pair."""
        base = self.checkpoint(recipe.base.location, "base")
        doubts: list[str] = []
        for name, source in recipe.sources.items():
            pair = (name, source.location, recipe.base.location, bool(recipe.slices))
            other = self.checkpoint(source.location, f"sources.{name}")
            if pair not in self._doubts:
                self._doubts[pair] = compare(name, other, base, stacked=bool(recipe.slices))
            doubts += self._doubts[pair]
        return resolve(recipe, base, doubts, {name: self.checkpoint(source.location) for name, source in recipe.sources.items()})

    def fingerprints(self, recipe: Recipe) -> dict[str, str]:
        """A hash of every file that the recipe's result depends on, by its role; a model's is that of when it was first used."""
        models = {"base": recipe.base, **recipe.sources}
        found = {role: self._fingerprint(source.location) for role, source in models.items()}
        files = [(role, kind, getattr(source, kind)) for role, source in models.items() for kind in ("fisher", "gram")]
        found |= {f"{role}.{kind}": digest(Path(file)) for role, kind, file in files if file and Path(file).is_file()}
        return found | ({"heal.texts": _texts(recipe.heal.texts)} if recipe.heal else {})

    def _fingerprint(self, location: str) -> str:
        if location not in self._fingerprints:
            self._fingerprints[location] = self.checkpoint(location).fingerprint
        return self._fingerprints[location]

    def settle(self, recipe: Recipe, plan: Plan) -> None:
        """Decides where the tensors behind a plan stay, if they do; see placement.py."""
        steps = ((step.name, step.base, step.sources) for step in plan.steps)
        behind = (recipe.base.location, *locations(recipe, [*recipe.sources]), *steps)
        if self.resident and behind not in self._settled:
            self.shelf.assign([self._load(recipe, step) for step in plan.steps])
            self._settled.add(behind)

    def _load(self, recipe: Recipe, step: Step) -> Load:
        sizes = {key: self.checkpoint(key[0]).size_of(key[1]) for key in _keys(recipe, step).values()}
        beside = 8 if self.device.type == "cpu" else 2 if step.method.startswith("della") else 0  # see Inputs.resident
        turned = sum(sizes.values()) if step.columns else 0
        return Load(sizes, beside * step.info.elements * len(step.sources) + turned)

    def carried(self, recipe: Recipe, batches: Iterable[list[Step]]) -> Iterator[list[Step]]:
        """The batches; while one is merged, what does not stay on the device of the next is on its way there."""
        if not self.shelf.streams:
            yield from batches
            return

        def fetch(steps: list[Step]) -> dict[Key, Tensor]:
            keys = [key for step in steps for key in _keys(recipe, step).values()]
            return {key: self.read(*key) for key in keys if self.shelf.carries([key])}

        try:
            for steps, arrived in Conveyor(self.device, fetch).run(batches):
                self._carried = arrived
                yield steps
        finally:
            self._carried = {}

    def read(self, location: str, name: str) -> Tensor:
        """A tensor of a model on the device, or where it waits to be carried there; resident, it outlives changes to the file."""
        key = (location, name)
        for there in (self._carried, self.shelf.tensors):
            if key in there:
                return there[key]
        checkpoint = self.checkpoint(location)
        tensor = checkpoint.read(name)
        if self.resident:  # a search looked through all models before it began
            return self.shelf.put(key, tensor)
        return refuse_odd(tensor, name, checkpoint.files[name]).to(self.device)

    def inputs(self, recipe: Recipe, step: Step) -> Inputs:
        """The tensors behind a step, with what is kept about them."""
        keys = _keys(recipe, step)
        key = (*step.sources, *keys, *(each for pair in keys.values() for each in pair), *["columns"] * step.columns)
        kept = self._inputs.get(key)
        if kept is not None and kept.place.seed == recipe.seed:
            return kept
        # in a stack random masks are drawn by the name in the first model: a layer that stands twice has the same ones
        place = Place(recipe.seed, step.name if step.origins is None else next(iter(keys.values()))[1], step.sources)
        tensors = {role: self.read(*pair) for role, pair in keys.items()}
        if step.columns:
            tensors = {role: tensor.movedim(-1, 0).contiguous() for role, tensor in tensors.items()}
        base, sources = (
            tensors.get(step.base),
            tuple(tensors[role] for role in step.sources if role in tensors),
        )  # base among them too
        if self.resident and self.shelf.carries(keys.values()):
            return Inputs(base, sources, place, known=self._known.setdefault(key, {}))
        inputs = Inputs(base, sources, place, self.resident)
        if self.resident:
            self._inputs[key] = inputs
        return inputs

    def copied(self, recipe: Recipe, step: Step) -> Tensor:
        """A tensor of whole numbers: the base's, or the first model's that gives layers to its slice."""
        role = "base" if step.origin("base") else next(iter(step.origins or {}))
        return self.read(locations(recipe, (role,))[0], step.origin(role) or "")


def _finished(step: Step, merged: Tensor) -> Tensor:
    """What no kernel does: nothing of it may be read before all that were launched together are there."""
    if step.rule and step.scale != 1:
        merged = (merged * step.scale).to(TORCH_DTYPES[step.info.dtype])
    return merged.movedim(0, -1).contiguous() if step.columns else merged


def _keys(recipe: Recipe, step: Step) -> dict[str, Key]:
    """By its role, the base's tensor behind a step and each source's, where the step has one."""
    roles = [role for role in (step.base, *step.sources) if step.origin(role)]
    return {role: (location, step.origin(role) or "") for location, role in zip(locations(recipe, roles), roles, strict=True)}


def _texts(location: str) -> str:
    path = Path(locate(location))
    if not path.is_file():
        raise RecipeError(f"heal.texts: {path} is no file; name the text to distil on, or leave `heal` out")
    return digest(path)
