"""One recipe merged, one model scored: the same rooms as in a search, without one."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from evomerge.candidate.merge import Progress
from evomerge.candidate.merge import merge as merge_plain
from evomerge.candidate.stream import Candidate, Sources
from evomerge.errors import ScoringError
from evomerge.healing.healer import Healer
from evomerge.recipe import Recipe
from evomerge.scoring.scores import Scores
from evomerge.study.executor import Job
from evomerge.study.experiment import Experiment
from evomerge.study.lab import Lab, split_documents


def merge(recipe: Recipe | str | Path, out: str | Path, *, progress: Progress | None = None) -> Path:
    """Write a recipe's model to the directory `out`, healed if the recipe says so; returns the directory.

    Raises EvomergeError on a recipe or sources that do not fit; then nothing is written.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)

    def finish(_: Candidate, sources: Sources) -> Candidate:
        return Healer(sources)(recipe)

    return merge_plain(recipe, out, heal=finish, progress=progress)


def evaluate(model: str | Path, suite: str | Path, *, split_name: str = "select") -> Scores:
    """Score a recipe file or a model directory on one split (search, select, sealed) of an experiment, guard tasks included."""
    experiment = Experiment.read(suite)
    documents = getattr(split_documents(experiment), split_name)
    job = Job(None, documents, model=Path(model)) if Path(model).is_dir() else Job(Recipe.read(model), documents)
    with closing(Lab(experiment)) as lab:
        return lab.evaluate(job).scores


def read_scores(path: str | Path) -> Scores:
    """Scores from a `scores.jsonl`, or from the folder of a trial or baseline that holds one."""
    path = Path(path)
    file = path / "scores.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ScoringError(f"{path}: no scores here; give a scores.jsonl, or a folder of a study's trials or baselines")
    return Scores.read(file)
