"""The commands: thin, each a few lines over a public function; what is heavy is imported where it is used."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from evomerge import __version__
from evomerge.errors import EvomergeError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Find how to merge language models: search, score, guard, certify.\n\n"
    "Exit codes: 0 done, or better and certified; 1 a bug; 2 bad input; 3 keep your parent; 4 refused by a guard; "
    "5 undecided; 130 interrupted, report written.",
)


class Log(StrEnum):
    auto = "auto"
    json = "json"
    quiet = "quiet"


class Split(StrEnum):
    search = "search"
    select = "select"
    sealed = "sealed"


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def search(
    space: Annotated[Path, typer.Argument(help="The experiment: recipe with ranges, suite, guard, scoring, search.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the study; results/NAME if not given.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Overrides search.trials.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Wall clock, as 8h or 90m, certificate included; eight trials even if late. Overrides search.budget."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that score; one per GPU, or per core, if not given.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Score on a Ray cluster: HOST:PORT of its head, auto, or local for this machine alone.", metavar="ADDRESS"
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Copy every trial into this database too, for optuna-dashboard: postgresql+psycopg2://USER@HOST/DB.",
            metavar="URL",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --out, or begin it.")] = False,
    reopen: Annotated[
        bool, typer.Option("--reopen", help="Judge on sealed documents that were opened before; the certificate says so.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, write nothing.")] = False,
    warm_start: Annotated[
        list[Path] | None, typer.Option(help="Folder of an earlier study, whose best recipe is tried first; may be repeated.")
    ] = None,
    log: Annotated[Log, typer.Option(help="auto: progress on a terminal, lines elsewhere; json: one object a line.")] = Log.auto,
) -> None:
    """Search a space of recipes, and hand over the best model with a certificate.

    A run that is killed goes on where it stood: the same command with --resume.
    """
    from evomerge.document import Place
    from evomerge.report.progress import watcher
    from evomerge.study.experiment import duration

    seconds = duration(budget, Place("--budget")) if budget else None
    directory = out or Path("results") / space.stem
    if dry_run:
        from evomerge.report.outlook import outlook

        print(outlook(space, trials, seconds, workers))
        return
    from evomerge.study.search import search as run

    try:
        with watcher(log.value) as watch:
            ending = run(
                space,
                directory,
                trials=trials,
                budget=seconds,
                workers=workers,
                ray=ray,
                storage=storage,
                reopen=reopen,
                resume=resume,
                watch=watch,
                warm_start=warm_start or (),
            )
    except KeyboardInterrupt:
        _report(directory)
        print(f"interrupted; go on with: evomerge search {space} --out {directory} --resume", file=sys.stderr)
        raise typer.Exit(130) from None
    _report(directory)
    raise typer.Exit(ending)


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe, any file with a recipe in it, or mergekit's YAML.")],
    out: Annotated[Path | None, typer.Option(help="The model directory to write; must not exist.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done with every tensor; read and write none.")
    ] = False,
    lora_rank: Annotated[
        int | None,
        typer.Option(min=1, help="Write a LoRA of this rank over the base instead; says how much it keeps."),
    ] = None,
) -> None:
    """Merge one recipe into a model directory, or into a LoRA adapter."""
    from evomerge.candidate import merge as merging
    from evomerge.mergekit import read_recipe

    given, notes = read_recipe(recipe)
    for note in notes:
        print(f"read differently: {note}", file=sys.stderr)
    if dry_run:
        print(merging.describe_plan(merging.dry_run(given)))
        return
    if out is None:
        raise EvomergeError("merge: nowhere to write; add --out DIR, or --dry-run to see the plan")
    if lora_rank:
        from evomerge.candidate.lora import merge_to_lora

        print(f"written: {out}; {merge_to_lora(given, out, lora_rank)}")
        return
    from evomerge.study.verbs import merge as run

    print(f"written: {run(given, out)}")


class Words(StrEnum):
    mergekit = "mergekit"
    evomerge = "evomerge"


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A recipe, mergekit's YAML, or a genome of mergekit-evolve.")],
    to: Annotated[Words, typer.Option(help="In whose words.")],
    out: Annotated[Path | None, typer.Option(help="Write it here instead of printing it.")] = None,
) -> None:
    """Say a recipe in mergekit's words, or mergekit's file in ours; a genome of mergekit-evolve becomes a search space.

    What mergekit has no words for is refused in one line, what is read differently is said on stderr.
    """
    from evomerge.mergekit import convert as run

    text, notes = run(file, to.value)
    for note in notes:
        print(f"read differently: {note}", file=sys.stderr)
    if out is None:
        print(text, end="")
        return
    out.write_text(text, encoding="utf-8")
    print(f"written: {out}")


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A recipe file or a model directory.")],
    suite: Annotated[Path, typer.Option(help="The experiment file whose suite and guard tasks are scored.")],
    split: Annotated[Split, typer.Option(help="Which documents.")] = Split.select,
    out: Annotated[Path | None, typer.Option(help="Write the rows here, one JSON object a document.")] = None,
) -> None:
    """Score a recipe or a model: one row per document, and the mean of each task."""
    from evomerge.report.tables import scores_table
    from evomerge.study.verbs import evaluate as run

    scores = run(model, suite, split_name=split.value)
    if out:
        scores.write(out)
    print(scores_table(scores))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Scores of the candidate: a scores.jsonl, or a folder that holds one.")],
    b: Annotated[Path, typer.Argument(help="Scores of what it is compared with.")],
) -> None:
    """Compare two scored models on the documents that both were scored on: difference, interval, flips."""
    from evomerge.report.tables import comparison_table
    from evomerge.study.verbs import read_scores

    print(comparison_table(read_scores(a), read_scores(b)))


@app.command()
def guard(
    model: Annotated[Path, typer.Argument(help="A model directory, a recipe, or scores already written (jsonl).")],
    against: Annotated[Path, typer.Option(help="Its parent, in any of these forms.")],
    suite: Annotated[Path, typer.Option(help="The experiment file whose guard tasks are judged.")],
    split: Annotated[Split, typer.Option(help="Which documents, where they are scored now.")] = Split.sealed,
    explain: Annotated[bool, typer.Option("--explain", help="List the documents that flipped, with both answers.")] = False,
    ledger: Annotated[Path | None, typer.Option(help="The ledger of the line: what it ever passed must still pass.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the verdict here: every figure, as JSON.")] = None,
) -> None:
    """Judge a model against its parent: exit code 0 passed, 4 refused, 5 undecided."""
    from evomerge.report.tables import judgement_table
    from evomerge.study.verbs import guard as run

    judgement = run(model, against, suite, split_name=split.value, ledger=ledger, out=out)
    print(judgement_table(judgement, explain=explain))
    raise typer.Exit(judgement.exit_code)


@app.command()
def ledger(
    file: Annotated[Path, typer.Argument(help="The ledger.jsonl of a line of releases.")],
    enter: Annotated[str | None, typer.Option(metavar="NAME", help="Enter a release of this name first.")] = None,
    model: Annotated[Path | None, typer.Option(help="Its model directory.")] = None,
    scores: Annotated[Path | None, typer.Option(help="What it scored, from `evomerge eval --out`.")] = None,
    line: Annotated[str, typer.Option(help="The name of a line that begins now.")] = "line",
    learned: Annotated[
        list[str] | None, typer.Option(metavar="TASK=RELEASE", help="With which release a task arrived; guessed from its scores.")
    ] = None,
) -> None:
    """Show a line of releases, what it kept and what it forgot; or enter a release into it.

    A new model is held to everything its line ever passed: evomerge guard --ledger, or a search over a base that brings a ledger.
    """
    from evomerge.guards.ledger import Ledger
    from evomerge.report.lines import ledger_table
    from evomerge.study.verbs import release

    if enter is not None:
        if model is None or scores is None:
            raise EvomergeError("ledger: a release is entered with its model and scores; add --model DIR and --scores FILE")
        release(file, line, enter, model, scores)
    arrivals = [arrival.partition("=") for arrival in learned or []]
    print(ledger_table(Ledger.read(file), {task: name for task, _, name in arrivals}))


class Kind(StrEnum):
    parameter = "parameter"
    block = "block"


@app.command()
def fisher(
    model: Annotated[Path, typer.Argument(help="A model directory.")],
    texts: Annotated[Path, typer.Option(help="JSONL with a text a line: the skill to keep.")],
    out: Annotated[Path, typer.Option(help="Where the diagonal goes, as FOLDER/SOURCE.safetensors.")],
    per: Annotated[Kind, typer.Option(help="A number for every weight, or one for every tensor.")] = Kind.parameter,
) -> None:
    """Estimate how much each weight of a model matters on texts, for the guard `ewc` and the method `fisher`."""
    from evomerge.study.verbs import estimate_fisher

    print(f"written: {estimate_fisher(model, texts, out, kind=per.value)}")


@app.command("gram")
def collect_gram(
    model: Annotated[Path, typer.Argument(help="A model directory.")],
    texts: Annotated[Path, typer.Option(help="JSONL with a text a line, of what the model is good at.")],
    out: Annotated[Path, typer.Option(help="The file to write, as math-gram.safetensors: in * in numbers a linear layer.")],
) -> None:
    """Collect what goes into every linear layer of a model on texts, for the method `regmean` (a source's `gram`)."""
    from evomerge.study.verbs import estimate_gram

    print(f"written: {estimate_gram(model, texts, out)}")


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="The folder of a study.")],
    submission: Annotated[
        Path | None,
        typer.Option(help="What a leaderboard asks, as YAML: also write the folder that it takes.", metavar="BOARD.yaml"),
    ] = None,
) -> None:
    """Write report.html, report.md and report.json of a study, finished or not, and print its table.

    With --submission also STUDY/submission: model, card, recipe and certificate. BOARD.yaml has `board`, `model`, `license`, and
    where it matters `precision`, `parameters` (at most) and `tasks`.
    """
    from evomerge.report.write import write_report

    print(write_report(study))
    if submission:
        from evomerge.report.submission import write_submission

        print(f"submission: {write_submission(study, submission)}")


@app.command()
def status(study: Annotated[Path, typer.Argument(help="The folder of a study, running or not.")]) -> None:
    """Say where a study stands: running or stopped, its phase, trials, best estimate and time."""
    from evomerge.report.status import status as run

    print(run(study))


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="The folder for the new experiment file.")],
    base: Annotated[str | None, typer.Option(help="The model that the others were tuned from.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="NAME=MODEL, once for each expert.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="An lm-eval task to be good at, once for each.")] = None,
    guard: Annotated[list[str] | None, typer.Option(help="An lm-eval task that must not be lost, once for each.")] = None,
) -> None:
    """Write an experiment file to begin with; without models, about those that ship with evomerge."""
    from evomerge.start import init as run

    print(f"written: {(path := run(directory, base, source or [], task or [], guard or []))}")
    print(f"next:    evomerge search {path} --dry-run")


@app.command()
def doctor() -> None:
    """Check what this machine has for merging and scoring, and say how to get what it lacks."""
    from evomerge.doctor import doctor as run
    from evomerge.doctor import healthy, lines

    findings = run()
    print("\n".join(lines(findings)))
    raise typer.Exit(0 if healthy(findings) else 2)


class Bench(StrEnum):
    search = "search"
    merge = "merge"
    scoring = "scoring"
    loop = "loop"
    kernels = "kernels"
    samplers = "samplers"
    anytime = "anytime"


@app.command()
def bench(
    what: Annotated[
        Bench,
        typer.Argument(
            help="search: a whole run, by the wall; merge: from a recipe to live weights, and from files to"
            " files beside cp and mergekit, by CPU time; scoring: candidates an hour with hf,"
            " with a live vLLM and with a fresh one for each; loop: what the controller takes for a trial, 300 dimensions, 64"
            " simulated workers; kernels: beside a copy."
        ),
    ],
    space: Annotated[Path, typer.Argument(help="The experiment to time.")] = Path("search_spaces/quickstart.yaml"),
    runs: Annotated[int, typer.Option(min=1, help="Runs of a search or a merge; candidates of each way to score.")] = 3,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that score.")] = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents a candidate, for scoring.")] = 600,
    mergekit: Annotated[
        Path | None,
        typer.Option(help="For merge: the python of an environment that has mergekit, to merge the same.", metavar="PYTHON"),
    ] = None,
) -> None:
    """Time a search, a merge, scoring or the kernels on this machine, medians of several runs."""
    from evomerge import bench as benches

    if what is Bench.loop:
        from evomerge.bench.loop import bench_loop

        for line in bench_loop(workers=workers or 64):
            print(line, flush=True)
        return
    if what in (Bench.kernels, Bench.scoring):
        from evomerge.bench.kernels import bench_kernels
        from evomerge.bench.scoring import bench_scoring

        for line in bench_kernels() if what is Bench.kernels else bench_scoring(space, documents, runs):
            print(line, flush=True)
        return
    if what is Bench.samplers:
        from evomerge.bench.samplers import bench_samplers

        for line in bench_samplers(seeds=runs):
            print(line, flush=True)
        return
    if what is Bench.anytime:
        from evomerge.bench.anytime import bench_anytime

        print(bench_anytime())
        return

    if what is Bench.merge:
        from evomerge.bench.disk import bench_disk

        print(benches.bench_merge(space), flush=True)
        for line in bench_disk(mergekit, runs=runs):
            print(line, flush=True)
        return

    print(benches.bench_search(space, runs, workers))


def _report(directory: Path) -> None:
    from evomerge.report.write import write_report

    if (directory / "study.json").exists():
        print(write_report(directory))


def main() -> Any:
    """The command line; bad input ends with one line and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except EvomergeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
