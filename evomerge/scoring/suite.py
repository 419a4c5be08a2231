"""What is asked of a model: tasks and their weights, and the three splits that keep searching, choosing and certifying apart.

suite:
  include: zoo:tasks            # folders of lm-eval task files; nothing: the tasks that come with lm-eval
  tasks: {sort: 1.0, reverse: 1.0}
  aggregate: geometric          # or mean, min, relative (to each task's best parent)
  rungs: [96, 384, 960]         # documents of the search, totals over the tasks, nested
  select: 240
  sealed: 600
guard: {tasks: {past_tense: 0.02}, sealed: 1600}       # tolerances (see bound.py); sealed: documents per guard task
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from evomerge.document import Block, Place, describe
from evomerge.errors import DocumentError, GuardError, SuiteError
from evomerge.recipe import locate
from evomerge.scoring.bound import Bound, Ewc

AGGREGATES = ("geometric", "mean", "min", "relative")
FLOOR = 1e-3  # a task at 0 must not hide what the other tasks do from a geometric search


@dataclass(frozen=True)
class Suite:
    """The target tasks with their weights, how they become one number, and how many documents each split takes."""

    tasks: Mapping[str, float] = field(hash=False)
    include: tuple[str, ...] = ()
    aggregate: str = "geometric"
    rungs: tuple[int, ...] = (96, 384, 960)
    select: int = 240
    sealed: int = 600
    repair: int = 0  # sealed documents held back for a refused model that is mended
    seed: int = 0

    @classmethod
    def from_data(cls, data: object, place: Place, root: Path | None = None) -> Suite:
        """A suite from plain data; relative folders are taken from `root`. Raises SuiteError or DocumentError."""
        block = Block(data, place, list(cls.__dataclass_fields__))
        tasks = _numbers(block, "tasks", low=0.0)
        if not sum(tasks.values()):
            raise SuiteError(f"{place / 'tasks'}: no task with a weight above 0; name at least one, as {{sort: 1.0}}")
        suite = cls(
            tasks=tasks,
            include=_include(block, root),
            aggregate=block.text("aggregate", cls.aggregate, among=AGGREGATES),
            rungs=_rungs(block, cls.rungs, len(tasks)),
            select=block.integer("select", cls.select, low=len(tasks)),
            sealed=block.integer("sealed", cls.sealed, low=len(tasks)),
            repair=block.integer("repair", cls.repair),
            seed=block.integer("seed", cls.seed),
        )
        if 0 < suite.repair < len(tasks):
            raise SuiteError(
                f"{place / 'repair'}: {suite.repair} documents for {len(tasks)} tasks; give at least one each, or none"
            )
        return suite

    def to_data(self) -> dict[str, Any]:
        lists = {"tasks": dict(self.tasks), "include": list(self.include), "rungs": list(self.rungs)}
        return {**vars(self), **lists}


@dataclass(frozen=True)
class GuardConfig:
    """What must not be lost: a tolerance for each guard task, and a bound on the KL divergence to the base."""

    tasks: Mapping[str, Bound | float] = field(hash=False)
    sealed: int = 1600  # per guard task
    repair: int | None = None  # per guard task; None: as many as sealed where the suite holds some back
    select: int | None = None  # per guard task; None: as many as all target tasks together
    search: int | tuple[int, ...] | None = None  # per guard task on the top rung, or on each; None: as the average target task
    discordance: float = 0.1  # share of documents on which two models are expected to differ
    kl: float | None = None  # mean over the tokens of the prompts, in nats
    kl_p95: float | None = None  # 95th percentile over them
    kl_prompts: str | None = None
    ewc: Ewc | None = None

    @classmethod
    def from_data(cls, data: object, place: Place, root: Path | None = None) -> GuardConfig:
        """A guard from plain data; raises GuardError or DocumentError."""
        block = Block(data, place, list(cls.__dataclass_fields__))
        prompts = block.text("kl_prompts", None)
        if prompts is None and ("kl" in block or "kl_p95" in block):
            raise GuardError(f"{place}: a bound on KL needs prompts; give `kl_prompts`, a JSONL file with a text a line")
        if prompts and root is not None and not prompts.startswith("zoo:"):
            prompts = str((root / prompts).resolve())
        return cls(
            tasks={str(task): Bound.from_data(bound, place / "tasks" / str(task)) for task, bound in _entries(block, "tasks")},
            sealed=block.integer("sealed", cls.sealed, low=1),
            repair=block.integer("repair", None, low=1),
            select=block.integer("select", None, low=1),
            search=_on_rungs(block),
            discordance=float(block.number("discordance", cls.discordance, low=1e-3, high=1.0)),
            kl=block.number("kl", None, low=0.0),
            kl_p95=block.number("kl_p95", None, low=0.0),
            kl_prompts=prompts,
            ewc=Ewc.from_data(block.get("ewc"), place / "ewc", root) if "ewc" in block else None,
        )

    def to_data(self) -> dict[str, Any]:
        tasks = {task: bound.to_data() if isinstance(bound, Bound) else bound for task, bound in self.tasks.items()}
        return {**vars(self), "tasks": tasks, "ewc": self.ewc.to_data() if self.ewc else None}

    @property
    def distances(self) -> dict[str, float]:
        """Limits on how far a candidate may move, whatever it answers: KL on prompts, and penalties on its weights."""
        kl = {"kl": self.kl, "kl p95": self.kl_p95}
        ewc = {f"ewc {name}": limit for name, limit in (self.ewc.limits if self.ewc else {}).items()}
        return {**{name: limit for name, limit in kl.items() if limit is not None}, **ewc}

    @property
    def measures(self) -> bool:
        """Whether it is asked how far a candidate moved, as a limit, for the objective, or to be told."""
        return self.kl_prompts is not None or self.ewc is not None

    def price(self, distances: Mapping[str, float]) -> float:
        """What the objective pays for how far a candidate moved."""
        return self.ewc.price(distances) if self.ewc else 0.0


def refuse_overlap(suite: Suite, guard: GuardConfig | None, place: Place) -> None:
    """A task is either what the search improves or what it must not lose."""
    if both := sorted(set(suite.tasks) & set(guard.tasks if guard else ())):
        raise SuiteError(f"{place}: {', '.join(both)} is a target in suite.tasks and guarded in guard.tasks; remove it from one")


@dataclass(frozen=True)
class Splits:
    """Which documents steer the search, which choose a finalist, and which are seen once, at the end."""

    search: Mapping[str, tuple[int, ...]] = field(hash=False)  # in the order of the rungs
    rungs: tuple[Mapping[str, int], ...] = field(hash=False)  # how many of them each rung takes
    select: Mapping[str, tuple[int, ...]] = field(hash=False)
    sealed: Mapping[str, tuple[int, ...]] = field(hash=False)
    repair: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)  # sealed, for a mended model
    documents: str = ""  # fingerprint of the contents, so that an edited file is another split

    def rung(self, rung: int) -> dict[str, list[int]]:
        """All documents of this rung, those of the rungs below it first."""
        return {task: list(self.search[task][:count]) for task, count in self.rungs[rung].items()}

    def new(self, rung: int) -> dict[str, list[int]]:
        """The documents that this rung adds to the one below it."""
        below = self.rungs[rung - 1] if rung else {}
        return {task: docs[below.get(task, 0) :] for task, docs in self.rung(rung).items()}

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.to_data(), sort_keys=True).encode()).hexdigest()

    def to_data(self) -> dict[str, Any]:
        kinds = ("search", "select", "sealed", *(["repair"] if self.repair else []))
        named = {name: {task: list(ids) for task, ids in getattr(self, name).items()} for name in kinds}
        return {**named, "rungs": [dict(rung) for rung in self.rungs], "documents": self.documents}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Splits:
        kinds = ("search", "select", "sealed", "repair")
        named = {name: {task: tuple(ids) for task, ids in data.get(name, {}).items()} for name in kinds}
        return cls(**named, rungs=tuple(data["rungs"]), documents=data["documents"])


def split(suite: Suite, guard: GuardConfig | None, catalogue: Mapping[str, Sequence[str]]) -> Splits:
    """The three splits, a function of seed and document hashes alone; `catalogue` has the hash of every document of a task."""
    need = _needs(suite, guard)
    ordered = {task: _order(suite.seed, catalogue[task]) for task in need}
    _refuse_shortage(need, ordered)
    # sealed documents come first in the order: they stay sealed when somebody later asks for more rungs
    sealed = {task: tuple(ordered[task][: want.sealed]) for task, want in need.items()}
    repair = {task: tuple(ordered[task][want.sealed :][: want.repair]) for task, want in need.items() if want.repair}
    select = {task: tuple(ordered[task][want.kept :][: want.select]) for task, want in need.items()}
    search = {task: tuple(ordered[task][want.kept + want.select :][: want.rungs[-1]]) for task, want in need.items()}
    rungs = tuple({task: want.rungs[r] for task, want in need.items()} for r in range(len(suite.rungs)))
    contents = json.dumps({task: list(catalogue[task]) for task in need}, sort_keys=True)
    return Splits(search, rungs, select, sealed, repair, hashlib.sha256(contents.encode()).hexdigest())


@dataclass(frozen=True)
class _Need:
    rungs: tuple[int, ...]
    select: int
    sealed: int
    repair: int

    @property
    def kept(self) -> int:
        """Documents that neither steer nor choose."""
        return self.sealed + self.repair

    @property
    def total(self) -> int:
        return self.rungs[-1] + self.select + self.kept


def _needs(suite: Suite, guard: GuardConfig | None) -> dict[str, _Need]:
    """How many documents each task gives to each split."""
    tasks = len(suite.tasks)
    need = {
        task: _Need(
            tuple(_share(rung, i, tasks) for rung in suite.rungs),
            *(_share(total, i, tasks) for total in (suite.select, suite.sealed, suite.repair)),
        )
        for i, task in enumerate(suite.tasks)
    }
    if guard and guard.repair and not suite.repair:
        raise SuiteError("guard.repair: documents are held back of guards and not of targets; give suite.repair too")
    if guard:  # a guard task rides the rungs like the average target task; on select it must tell a loss from bad luck
        held_back = (guard.repair or guard.sealed) if suite.repair else 0
        rides = _Need(_ridden(guard, suite), guard.select or suite.select, guard.sealed, held_back)
        need |= dict.fromkeys(guard.tasks, rides)
    return need


def _ridden(guard: GuardConfig, suite: Suite) -> tuple[int, ...]:
    """How many documents of a guard task each rung takes."""
    if isinstance(guard.search, tuple):
        if len(guard.search) != len(suite.rungs):
            raise SuiteError(
                f"guard.search: {len(guard.search)} numbers for {len(suite.rungs)} rungs; give one for each, or one for the last"
            )
        return guard.search
    share = guard.search / suite.rungs[-1] if guard.search else 1 / len(suite.tasks)
    return tuple(math.ceil(rung * share) for rung in suite.rungs)


def _share(total: int, place: int, tasks: int) -> int:
    each, left = divmod(total, tasks)
    return each + (place < left)


def _order(seed: int, hashes: Sequence[str]) -> list[int]:
    """The documents by the hash of seed and content; equal documents are used once."""
    first: dict[str, int] = {}
    for i, content in enumerate(hashes):
        first.setdefault(content, i)
    return [
        first[content] for content in sorted(first, key=lambda content: hashlib.sha256(f"{seed}:{content}".encode()).digest())
    ]


def _refuse_shortage(need: Mapping[str, _Need], ordered: Mapping[str, Sequence[int]]) -> None:
    short = [
        f"{task} has {len(ordered[task])} and the splits ask for {want.total}"
        f" ({want.rungs[-1]} search + {want.select} select + {want.sealed} sealed"
        + (f" + {want.repair} repair)" if want.repair else ")")
        for task, want in need.items()
        if len(ordered[task]) < want.total
    ]
    if short:
        raise SuiteError(f"too few distinct documents: {'; '.join(short)}; lower rungs, select or sealed")


def _entries(block: Block, key: str) -> list[tuple[Any, Any]]:
    return list(block.mapping(key, {}).items())


def _numbers(block: Block, key: str, **bounds: float) -> dict[str, float]:
    """A mapping of names to numbers, strictly."""
    entries = block.mapping(key)
    inner = Block(entries, block.place / key, [str(name) for name in entries])
    return {str(name): float(inner.number(str(name), **bounds)) for name in entries}


def _include(block: Block, root: Path | None) -> tuple[str, ...]:
    value = block.get("include", [])
    folders = value if isinstance(value, list) else [value]
    if bad := [folder for folder in folders if not isinstance(folder, str)]:
        raise DocumentError(f"{block.place / 'include'}: expected a folder or a list of folders, found {describe(bad[0])}")
    absolute = [f if f.startswith("zoo:") or root is None else str((root / f).resolve()) for f in folders]
    for folder in absolute:
        if not locate(folder).is_dir():
            raise SuiteError(f"{block.place / 'include'}: {folder} is not a folder; give the folder that holds the task files")
    return tuple(absolute)


def _on_rungs(block: Block) -> int | tuple[int, ...] | None:
    """A number for the last rung, or one for each, none below the one before."""
    if not isinstance(block.get("search", None), list):
        return cast("int | None", block.integer("search", None, low=1))
    numbers = _counts(block, "search", [])
    if not numbers or any(a > b for a, b in itertools.pairwise(numbers)):
        raise GuardError(f"{block.place / 'search'}: {list(numbers)} must not shrink from rung to rung")
    return numbers


def _counts(block: Block, key: str, default: list[int]) -> tuple[int, ...]:
    found = block.sequence(key, default)
    counted = Block({str(i): count for i, count in enumerate(found)}, block.place / key, [str(i) for i in range(len(found))])
    return tuple(counted.integer(str(i), low=1) for i in range(len(found)))


def _rungs(block: Block, default: tuple[int, ...], tasks: int) -> tuple[int, ...]:
    place, numbers = block.place / "rungs", _counts(block, "rungs", list(default))
    if not numbers or numbers[0] < tasks or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise SuiteError(
            f"{place}: {list(numbers)} must grow from rung to rung and begin with at least one document per task ({tasks})"
        )
    return numbers
