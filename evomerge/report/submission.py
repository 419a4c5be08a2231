"""A folder that a leaderboard can take: the certified model with a card whose figures are the certificate's own.

    evomerge report results/night --submission board.yaml

`board.yaml` says what the board asks: its name, the name to submit under, a licence, the board's own tasks, and its limits.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.document import Block, Place, dump_yaml, read_yaml
from evomerge.errors import CheckpointError, StudyError
from evomerge.recipe import Recipe, Source
from evomerge.report.standing import comparisons, guards, standing
from evomerge.report.tables import markdown
from evomerge.report.view import View
from evomerge.scoring.scores import Scores

FOLDER = "submission"
PRECISIONS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Board:
    """What a leaderboard asks of a model."""

    name: str
    model: str  # the name to submit under, as organisation/model
    license: str
    precision: str | None = None  # of every weight
    parameters: float | None = None  # at most
    tasks: tuple[str, ...] = ()  # the board's own: the card says which of them steered the search

    @classmethod
    def read(cls, path: str | Path) -> Board:
        """Raises DocumentError."""
        place = Place(str(path))
        block = Block(read_yaml(path), place, ["board", *(f for f in cls.__dataclass_fields__ if f != "name")])
        return cls(
            name=block.text("board"),
            model=block.text("model"),
            license=block.text("license"),
            precision=block.text("precision", None, among=list(PRECISIONS)),
            parameters=block.number("parameters", None, low=1),
            tasks=tuple(map(str, block.sequence("tasks", []))),
        )


def write_submission(study: str | Path, board: str | Path) -> Path:
    """Write STUDY/submission: weights, config, tokenizer, card, recipe and certificate; the same again where it is there.

    Raises StudyError where the study is not certified, CheckpointError where the model breaks a limit of the board.
    """
    view, asked = View.of(Path(study)), Board.read(board)
    certificate = _certified(view)
    model = view.directory / "best" / "model"
    checkpoint = Checkpoint.open(model)
    _refuse_misfit(checkpoint, asked)
    folder, draft = view.directory / FOLDER, view.directory / f"{FOLDER}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "evomerge").mkdir(parents=True)
    for file in sorted(path for path in model.iterdir() if path.name != "README.md"):
        _link(file, draft / file.name)
    shutil.copyfile(view.directory / "certificate.json", draft / "evomerge/certificate.json")
    (draft / "evomerge/recipe.yaml").write_text(public(view).to_yaml(), encoding="utf-8")
    (draft / "README.md").write_text(card(view, certificate, asked), encoding="utf-8")
    (draft / "request.json").write_text(json.dumps(request(view, checkpoint, asked), indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return folder


def card(view: View, certificate: dict[str, Any], board: Board) -> str:
    """The model card: what it is made of, how good it is on documents nothing had seen, and what steered the search."""
    head = {
        "base_model": [public(view).base.model, *(source.model for source in public(view).sources.values())],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "license": board.license,
        "tags": ["merge", "evomerge"],
        "model-index": [{"name": board.model.split("/")[-1], "results": _results(view)}],
    }
    parts = [
        f"---\n{dump_yaml(head)}---",
        f"# {board.model.split('/')[-1]}",
        "A merge found, scored, guarded and certified by evomerge. The figures below are of this very model, read back from "
        f"disk, on documents that neither the search nor the choice had seen; splits `{certificate['splits'][:12]}`.",
        "\n".join(markdown(standing(view))),
        "\n".join(markdown(comparisons(view))),
        *(["\n".join(markdown(guards(view)))] if guards(view) else []),
        "## What steered the search",
        _steered(view, board),
        "## Recipe",
        f"```yaml\n{public(view).to_yaml()}```",
    ]
    return "\n\n".join(parts) + "\n"


def request(view: View, checkpoint: Checkpoint, board: Board) -> dict[str, Any]:
    """What boards ask in their forms."""
    return {
        "board": board.name,
        "model": board.model,
        "base_model": public(view).base.model,
        "precision": board.precision or _precision(checkpoint),
        "parameters": sum(info.elements for info in checkpoint.tensors.values()),
        "architecture": (checkpoint.config.get("architectures") or ["unknown"])[0],
        "weight_type": "Original",
        "license": board.license,
        "fingerprint": checkpoint.fingerprint,
    }


def _certified(view: View) -> dict[str, Any]:
    if view.certificate is None or view.certificate["ending"] != 0:
        raise StudyError(f"{view.directory}: {view.verdict}; only a model that is better and certified is submitted")
    return view.certificate


def _refuse_misfit(checkpoint: Checkpoint, board: Board) -> None:
    """Raises CheckpointError with what the board does not take."""
    count = sum(info.elements for info in checkpoint.tensors.values())
    if board.parameters and count > board.parameters:
        raise CheckpointError(f"{checkpoint.path}: {count:,} parameters; {board.name} takes {board.parameters:,.0f} at most")
    wanted = PRECISIONS.get(board.precision or "")
    if wanted and (other := {info.dtype for info in checkpoint.tensors.values()} - {wanted}):
        raise CheckpointError(f"{checkpoint.path}: has {', '.join(sorted(other))} weights; {board.name} asks for {wanted}")
    if not checkpoint.tokenizer_files:
        raise CheckpointError(f"{checkpoint.path}: has no tokenizer; {board.name} cannot run it")


def _results(view: View) -> list[dict[str, Any]]:
    scores = Scores.read(view.directory / "sealed" / "winner.jsonl")
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": task, "type": task},
            "metrics": [
                {"type": "score", "value": round(scores.mean(task), 4), "name": f"{len(scores.task(task))} sealed documents"}
            ],
        }
        for task in view.experiment.suite.tasks
    ]


def _steered(view: View, board: Board) -> str:
    """Honest about what the search was told: a board's own tasks among it are named."""
    suite, guarded = list(view.experiment.suite.tasks), list(view.experiment.guard.tasks)
    text = f"Targets: {_list(suite)}. Guards: {_list(guarded) if guarded else 'none'}. Their documents were split by hash before "
    text += "the first trial; those that the figures rest on were opened once, at the end."
    if seen := [task for task in board.tasks if task in {*suite, *guarded}]:
        text += f" **Of {board.name}'s own tasks, documents of {_list(seen)} steered the search.**"
    elif board.tasks:
        text += f" None of {board.name}'s own tasks steered the search."
    return text


def public(view: View) -> Recipe:
    """The winner's recipe with models as others may know them: of a folder on this machine only its name."""
    recipe = view.best
    assert recipe is not None
    sources = {name: _known(source) for name, source in recipe.sources.items()}
    return replace(recipe, base=_known(recipe.base), sources=sources)


def _known(source: Source) -> Source:
    return replace(source, model=Path(source.model).name) if Path(source.model).is_absolute() else source


def _precision(checkpoint: Checkpoint) -> str:
    kinds = {info.dtype for info in checkpoint.tensors.values()}
    return next((name for name, dtype in PRECISIONS.items() if kinds == {dtype}), "mixed")


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _link(file: Path, target: Path) -> None:
    """The same bytes under another name; a copy where the file system links nothing."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
