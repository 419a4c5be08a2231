"""One recipe merged, one model scored: the same rooms as in a search, without one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.merge import Progress
from evomerge.candidate.merge import merge as merge_plain
from evomerge.candidate.statistics import gram
from evomerge.candidate.stream import Candidate, Sources
from evomerge.errors import GuardError, ScoringError
from evomerge.guards.criteria import criteria, refuse_undecidable
from evomerge.guards.ewc import fisher, write_fisher
from evomerge.guards.judgement import Distance, Judgement, judge
from evomerge.guards.ledger import Ledger
from evomerge.guards.verdict import together
from evomerge.healing.healer import LONGEST_ROW, Healer
from evomerge.healing.texts import read_texts
from evomerge.mergekit import read_recipe
from evomerge.recipe import Recipe, locate
from evomerge.scoring.scores import Scores
from evomerge.study.executor import Job, Result
from evomerge.study.experiment import Experiment
from evomerge.study.lab import Lab, split_documents
from evomerge.study.line import budgets, held, known_documents, ledger_of, refuse_unasked
from evomerge.study.moves import refuse_missing_fisher
from evomerge.study.record import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge(recipe: Recipe | str | Path, out: str | Path, *, progress: Progress | None = None) -> Path:
    """Write a recipe's model to the directory `out`, healed if the recipe says so; returns the directory.

    Raises EvomergeError on a recipe or sources that do not fit; then nothing is written.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)[0]

    def finish(_: Candidate, sources: Sources) -> Candidate:
        return Healer(sources)(recipe)

    return merge_plain(recipe, out, heal=finish, progress=progress)


def evaluate(model: str | Path, suite: str | Path, *, split_name: str = "select") -> Scores:
    """Score a recipe file or a model directory on one split (search, select, sealed) of an experiment, guard tasks included."""
    experiment = Experiment.read(suite)
    documents = getattr(split_documents(experiment), split_name)
    with closing(Lab(experiment)) as lab:
        return lab.evaluate(_job(model, documents)).scores


def guard(
    model: str | Path,
    against: str | Path,
    suite: str | Path,
    *,
    split_name: str = "sealed",
    ledger: str | Path | None = None,
    out: str | Path | None = None,
) -> Judgement:
    """Judge a model against its parent by the guards of an experiment file; `out` takes the verdict as JSON.

    Each of the two is a model directory, a recipe, or scores already written; those are taken with the documents they have.
    With a `ledger`, the budgets of flips hold on everything its line ever passed. KL is measured against the parent, elastic
    weights against the sources that the experiment names. Raises EvomergeError where guards are missing, the two were not asked
    the same, or the ledger was edited.
    """
    experiment = Experiment.read(suite)
    line = ledger_of(ledger, against) if ledger else None
    _refuse_unguarded(experiment, [against, model], line)
    parent, candidate = _scored([against, model], experiment, split_name, line)
    found = criteria(experiment.guard)
    judgement = judge(found, parent.scores, candidate.scores) if found else Judgement({})
    if line:
        held_to = held(line, experiment.guard, candidate.scores)
        judgement = replace(judgement, verdicts=together({**judgement.verdicts, **held_to}))
    limits = experiment.guard.distances
    judgement = replace(judgement, distances={name: Distance(d, limits.get(name)) for name, d in candidate.distances.items()})
    if out is not None:
        write_atomically(Path(out), json.dumps(judgement.to_dict(), indent=1, ensure_ascii=False) + "\n")
    return judgement


def _refuse_unguarded(experiment: Experiment, models: Sequence[str | Path], line: Ledger | None) -> None:
    """Raises GuardError where the experiment guards nothing, or something that these models cannot tell."""
    guard, place = experiment.guard, experiment.place / "guard"
    if not guard.tasks and not guard.measures:
        raise GuardError(f"{place}: guards no task; name one with its tolerance, as {{past_tense: 0.02}}")
    if line and not budgets(guard):
        raise GuardError(f"{place}: a ledger needs a budget of flips; give a task one, as {{flips: 0.02}}")
    written = next((model for model in models if holds_scores(model)), None)
    if guard.distances and written is not None:
        limits = ", ".join(guard.distances)
        raise GuardError(f"{place}: scores do not tell how far a model moved ({limits}); give the model instead of {written}")
    start = experiment.space.build(experiment.space.start())
    if guard.ewc:
        sources = {"base": start.base, **start.sources}
        refuse_missing_fisher(guard, {name: Checkpoint.open(source.location) for name, source in sources.items()})


def estimate_fisher(model: str | Path, texts: str | Path, out: str | Path, *, kind: str = "parameter") -> Path:
    """Estimate the Fisher diagonal of a model directory on a JSONL file of texts, and store it for `guard.ewc`.

    Raises EvomergeError where there is no model, no tokenizer or no text; then nothing is written.
    """
    checkpoint, module, rows = _read_with(model, texts)
    diagonal = fisher(module, rows, checkpoint.tensors)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_fisher(out, diagonal, model=checkpoint.fingerprint, kind=kind)
    return Path(out)


def estimate_gram(model: str | Path, texts: str | Path, out: str | Path) -> Path:
    """Collect what goes into every linear layer of a model directory on a JSONL file of texts, and store it for `regmean`.

    Raises EvomergeError where there is no model, no tokenizer or no text; then nothing is written.
    """
    checkpoint, module, rows = _read_with(model, texts)
    grams = gram(module, rows, checkpoint.tensors)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_fisher(out, grams, model=checkpoint.fingerprint)
    return Path(out)


def _read_with(model: str | Path, texts: str | Path) -> tuple[Checkpoint, PreTrainedModel, list[list[int]]]:
    """A model on disk, itself live, and texts as the ids of its own tokenizer."""
    from transformers import AutoTokenizer

    sources = Sources()
    checkpoint = sources.checkpoint(str(model))
    if not checkpoint.tokenizer_files:
        raise GuardError(f"{checkpoint.path}: has no tokenizer; the texts of a Fisher are read with the model's own")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    longest = int(checkpoint.config.get("max_position_embeddings", LONGEST_ROW))
    rows = [tokenizer.encode(text)[:longest] for text in read_texts(locate(str(texts)))]
    return checkpoint, Healer(sources).parent(str(model)), rows


def release(ledger: str | Path, line: str, name: str, model: str | Path, scores: str | Path) -> Ledger:
    """Enter a release into the ledger of a line, which is begun where there is none; returns the ledger as written."""
    path = Path(ledger)
    known = Ledger.read(path, line) if path.exists() else Ledger(line)
    extended = known.add(name, Checkpoint.open(str(model)).fingerprint, read_scores(scores))
    extended.write(path)
    return extended


def _scored(models: Sequence[str | Path], experiment: Experiment, split_name: str, line: Ledger | None) -> list[Result]:
    """Parent and model on the guard tasks: read where they are scored already, else measured, all in one lab."""
    if all(map(holds_scores, models)):
        return [Result(read_scores(model)) for model in models]
    splits = split_documents(experiment)
    refuse_undecidable(experiment.guard, splits.sealed)
    with closing(Lab(experiment, parent=Path(models[0]))) as lab:
        if line:
            refuse_unasked(line, experiment.guard, lab.scorer.catalogue())
        known = known_documents(line, experiment.guard, lab.scorer.catalogue()) if line else {}
        split = {task: getattr(splits, split_name)[task] for task in experiment.guard.tasks}
        documents = {task: sorted({*docs, *known.get(task, [])}) for task, docs in split.items()}
        measures = (False, experiment.guard.measures and not any(map(holds_scores, models)))
        return [_asked(lab, model, documents, measure) for model, measure in zip(models, measures, strict=True)]


def _asked(lab: Lab, model: str | Path, documents: Mapping[str, Sequence[int]], measure: bool) -> Result:
    if holds_scores(model):
        return Result(read_scores(model))
    return lab.evaluate(replace(_job(model, documents), measure=measure))


def _job(model: str | Path, documents: Mapping[str, Sequence[int]]) -> Job:
    return Job(None, documents, model=Path(model)) if Path(model).is_dir() else Job(read_recipe(model)[0], documents)


def holds_scores(path: str | Path) -> bool:
    """Whether this is a file of scores, or a folder of a study with one."""
    path = Path(path)
    return path.suffix == ".jsonl" or (path / "scores.jsonl").is_file()


def read_scores(path: str | Path) -> Scores:
    """Scores from a `scores.jsonl`, or from the folder of a trial or baseline that holds one."""
    path = Path(path)
    file = path / "scores.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ScoringError(f"{path}: no scores here; give a scores.jsonl, or a folder of a study's trials or baselines")
    return Scores.read(file)
