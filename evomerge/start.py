"""An experiment file to begin with, filled in from the command line: `evomerge init DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template

from evomerge.document import dump_yaml
from evomerge.errors import DocumentError, StudyError

FILE = "space.yaml"
ZOO = {"sort": "zoo:models/sort", "flip": "zoo:models/flip"}  # models that ship with evomerge: the file runs as it is

TEXT = Template("""\
# What may be merged, what it is scored on, what it must not lose, how long to search.
#   evomerge search $file --dry-run    checks everything and says what would run
#   evomerge search $file --resume     runs it; killed at any moment, the same command goes on
recipe:
  $base                     # a directory or a hub id; experts are fine-tunes of it
  sources:
$sources
  rules:                                    # the first whose `match` fits a tensor's name merges it
    - match: "*"
      method: ties                          # linear, task_arithmetic, slerp, dare_ties, della, breadcrumbs, sce, ...
      density: {range: [0.3, 1.0]}          # the share of each delta that is kept
      weight:                               # points: 2 is a line over the layers; 4 a curve
$weights
  # context: {rope_type: yarn, factor: {range: [1.0, 4.0], log: true}}    # stretches the context
suite:
$include  tasks: $tasks
  aggregate: geometric                      # no task is sold cheaply for another; or mean, min, relative
$rungs
  select: 300                               # fresh documents that choose one of the finalists
  sealed: 1200                              # seen once, by the chosen one: what the certificate rests on
$guard
scoring: {with: hf}                         # or vllm, or function
$search
""")
RACE = (
    "  rungs: [96, 288, 768]                     # documents of the search, nested; the weak are dropped early",
    "search: {trials: 200, budget: 8h, seed: 0}",
)
GROW = (  # measured without guards only: on few documents of a guard, bad luck looks like a loss
    "  rungs: [96, 192, 384, 768]                # documents of the search, nested",
    "search: {trials: 200, budget: 8h, eta: 1, grow: 24, seed: 0}    # 24 trials end on the first rung, 24 on the second, ...",
)


def init(directory: str | Path, base: str | None, sources: Sequence[str], tasks: Sequence[str], guards: Sequence[str]) -> Path:
    """Write DIR/space.yaml; without models it is about those that ship with evomerge, and runs as it is.

    `sources` are NAME=MODEL. Raises DocumentError where one is not, or a base has no sources; StudyError where the file is there.
    """
    models = dict(_pair(source) for source in sources)
    if bool(base) != bool(models):
        raise DocumentError("init: --base and --source NAME=MODEL go together")
    if base and not tasks:
        raise DocumentError("init: say what the merge is to be good at: --task NAME, as in `lm-eval ls tasks`")
    path = Path(directory) / FILE
    if path.exists():
        raise StudyError(f"{path}: exists already; edit it, or choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(starter(path, base, models, tasks, guards), encoding="utf-8")
    return path


def starter(path: Path, base: str | None, models: dict[str, str], tasks: Sequence[str], guards: Sequence[str]) -> str:
    """The text of the file."""
    shipped = base is None
    targets = list(tasks) or ["zoo_sort", "zoo_flip"]
    guarded = list(guards) or (["zoo_past"] if shipped else [])
    sources = ZOO if shipped else models
    rungs, search = RACE if guarded else GROW
    return TEXT.substitute(
        file=path,
        base=_line({"base": base or "zoo:models/base"}),
        sources="\n".join(f"    {_line({name: model})}" for name, model in sources.items()),
        weights="\n".join(f"        {_line({name: None})[:-5]} {{range: [0.0, 1.0], points: 2}}" for name in sources),
        include="  include: zoo:tasks                        # a folder of task files; without it, lm-eval's own tasks\n"
        if shipped
        else "",
        tasks=_flow(dict.fromkeys(targets, "1.0")),
        guard=_guard(guarded),
        rungs=rungs,
        search=search,
    )


def _guard(tasks: Sequence[str]) -> str:
    if not tasks:
        return "# guard: {tasks: {mmlu: 0.02}, sealed: 1600}    # what must not be lost, and how much of it at most"
    return f"guard: {{tasks: {_flow(dict.fromkeys(tasks, '0.03'))}, sealed: 1600}}    # may lose less than this to the base"


def _flow(items: dict[str, str]) -> str:
    return "{" + ", ".join(f"{_key(name)}: {value}" for name, value in items.items()) + "}"


def _line(item: dict[str, str | None]) -> str:
    """One entry of a mapping as YAML has it, quoted where it must be."""
    return dump_yaml(item).strip()


def _key(text: str) -> str:
    """A key within braces."""
    return dump_yaml([text]).strip()[1:-1]


def _pair(text: str) -> tuple[str, str]:
    name, found, model = text.partition("=")
    if not (name and found and model):
        raise DocumentError(f"init: --source {text!r} is not NAME=MODEL, as math=./math-7b")
    return name, model
