"""From the trials of a study to its certificate: select, choose, write, read back, and open the sealed documents once."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from evomerge import __version__
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.errors import StudyError
from evomerge.guards.criteria import criteria, opponents, reference
from evomerge.guards.ledger import Ledger
from evomerge.guards.verdict import Verdict, together
from evomerge.mergekit import expressed
from evomerge.scoring import ScoringConfig
from evomerge.scoring.scores import Scores
from evomerge.scoring.suite import Splits
from evomerge.study.baselines import parents as parent_recipes
from evomerge.study.estimate import optimism, shrink_scores
from evomerge.study.executor import Executor, Job, Life
from evomerge.study.experiment import Experiment
from evomerge.study.lab import catalogue
from evomerge.study.line import FILE, held, known_documents, ledger_beside, steering
from evomerge.study.record import Record
from evomerge.study.repair import Tried, best_of, between, nearest, told
from evomerge.study.sealed import Opening, open_sealed, told_looks
from evomerge.study.selection import Contender, Decision, Ending, Judge, choose, contending, decide_ending, finalists, rivals
from evomerge.study.trial import AIM, Outcome
from evomerge.study.watch import Watcher

Certificate = dict[str, Any]
DISK = "winner"  # the chosen one, as it lies on disk
REPAIRED = "repaired"
T = TypeVar("T")


@dataclass
class Closing:
    """What a study knows when its last trial has ended; `certify` does the rest."""

    experiment: Experiment
    record: Record
    splits: Splits
    executor: Executor
    parents: Mapping[str, Scores]
    baselines: Mapping[str, Outcome]
    outcomes: Sequence[Outcome]
    watch: Watcher
    reopen: bool = False  # open sealed documents for another model than they were opened for

    def __post_init__(self) -> None:
        best_parent = {task: max(scores.mean(task) for scores in self.parents.values()) for task in self.experiment.suite.tasks}
        self.judge = Judge(self.experiment, best_parent if self.experiment.suite.aggregate == "relative" else None)
        self.opened = False  # the sealed documents, for the chosen one
        self.recipes = parent_recipes(self.experiment.space)
        self.ledger = ledger_beside(self.recipes["base"].base.model)
        self.opponents = opponents(criteria(self.experiment.guard), self.parents)

    def certify(self) -> Certificate:
        """Everything after the last trial; writes `best/` and `certificate.json`, and returns the latter's content."""
        best = finalists(self.outcomes, self.experiment.search.finalists, len(self.splits.rungs) - 1)
        if not best:
            return self._write(self._nobody())
        select = self._select(best)
        opponent = reference(self.opponents, select)
        chosen = choose([Contender(o.name, select[o.name], o) for o in best], opponent, self.judge)
        compared = [*self.parents, *(name for name in rivals(self._contenders(select), self.judge) if name not in self.parents)]
        if chosen is None or chosen.outcome is None:
            reason = f"none of {len(best)} finalists keeps every guard on the select documents"
            self._save(max(best, key=lambda o: self.judge.value(select[o.name])))
            self._set_aside()
            figures = self._figures(best, select)
            return self._write({**figures, **Decision(4, (reason,)).to_data(), **self._repair(select, compared, opened=False)})
        files = self._save(chosen.outcome)
        differing = self._reread(chosen.scores)
        sealed, whole = self._seal(compared, chosen.name, "best", "sealed", self.splits.sealed)
        disk = whole.select(self.splits.sealed)
        decision = decide_ending(
            {name: self.judge.compare(disk, sealed[name]) for name in compared},
            self._guards(whole, disk, reference(self.opponents, sealed)),
        )
        self._release(chosen.name, whole, "best")
        repaired: Certificate = {}
        if decision.ending == 4:
            self._set_aside()
            repaired = self._repair(select, compared, opened=True)
        return self._write(
            {
                **repaired,
                **decision.to_data(),
                **self._figures(best, select),
                "winner": self._winner(chosen, disk, differing),
                "sealed": {name: self._summary(scores) for name, scores in {**sealed, "winner": disk}.items()},
                "files": files,
            }
        )

    def _nobody(self) -> Certificate:
        """No trial reached the top within its guards: refused if guards were what stopped them, else the parents stay."""
        broken = [o for o in self.outcomes if o.state != "failed" and not o.feasible]
        ending: Ending = 4 if broken and len(broken) == sum(o.state != "failed" for o in self.outcomes) else 3
        reason = "no trial kept the guards" if ending == 4 else "no trial reached the last rung within its guards"
        if not self.outcomes:
            reason = (
                "no trial was run: parents, baselines and the ending take all of the budget; raise it, or score fewer documents"
            )
        return Decision(ending, (reason,)).to_data()

    # --- select: fresh documents for the finalists, the parents and every baseline

    def _select(self, best: Sequence[Outcome]) -> dict[str, Scores]:
        recipes = {**self.recipes, **{o.name: o.recipe for o in (*self._contending(), *best)}}
        self.watch.phase("select", len(recipes))
        return self._score("select", {name: Job(recipe, self.splits.select) for name, recipe in recipes.items()})

    def _contending(self) -> list[Outcome]:
        return contending(list(self.baselines.values()))

    def _contenders(self, select: Mapping[str, Scores]) -> list[Contender]:
        parents = [Contender(name, select[name]) for name in self.parents]
        return parents + [Contender(outcome.name, select[outcome.name], outcome) for outcome in self._contending()]

    # --- sealed: seen once, by the chosen one as it lies on disk, its parents and the best baselines

    def _save(self, outcome: Outcome) -> dict[str, str]:
        """The chosen one as a model directory; what an earlier choice left there gives way to it."""
        directory, recipe = self.record.directory / "best", outcome.recipe.to_yaml()
        if self.record.read("best/recipe.yaml") != recipe:
            written = [f"{split}/{name}.jsonl" for split in ("select", "sealed", "repair") for name in (DISK, REPAIRED)]
            for stale in (directory, *(self.record.directory / name for name in (*written, REPAIRED))):
                _remove(stale)
            _, result = next(self.executor.run(iter([_once(outcome.name, Job(outcome.recipe, {}, save=directory / "model"))])))
            if result.error:
                raise StudyError(f"{outcome.name} cannot be written: {result.error}")
            theirs, wordless = expressed(outcome.recipe)
            if not wordless:
                self.record.write("best/recipe.mergekit.yaml", theirs)
            self.record.write("best/recipe.yaml", recipe)  # last: where it is, the rest is whole
        return {f"model/{path.name}": _sha256(path) for path in sorted((directory / "model").iterdir())}

    def _seal(
        self, compared: Sequence[str], name: str, folder: str, split: str, documents: Mapping[str, Sequence[int]]
    ) -> tuple[dict[str, Scores], Scores]:
        """Scores of all who are compared, and of the model that lies in `folder`."""
        recipes = {**self.recipes, **{name: o.recipe for name, o in self.baselines.items()}}
        guards = set(self.experiment.guard.tasks)
        targets = {task: docs for task, docs in documents.items() if task not in guards}
        guarded = {name: {task: docs for task, docs in documents.items() if self._meets(name, task)} for name in compared}
        jobs = {name: Job(recipes[name], {**targets, **guarded[name]}) for name in compared}
        own = DISK if folder == "best" else folder
        jobs[own] = Job(None, self._and_known(documents), model=self.record.directory / folder / "model")
        self.watch.phase(split, len(jobs))
        if split == "sealed":
            self._note_opening(name, folder)
        scores = self._score(split, jobs)
        return {name: scores[name] for name in compared}, scores[own]

    def _note_opening(self, name: str, folder: str) -> None:
        """On disk before a sealed document is scored."""
        model = Checkpoint.open(self.record.directory / folder / "model").fingerprint
        opening = Opening(name, model, len(self.outcomes), self.experiment.search.limits(), mends=self.opened)
        open_sealed(self.record, opening, reopen=self.reopen)
        self.opened = True

    def _and_known(self, documents: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """These documents, and those that the line of the base is held to."""
        if self.ledger is None:
            return {task: list(docs) for task, docs in documents.items()}
        known = known_documents(self.ledger, self.experiment.guard, catalogue(self.experiment))
        return {task: sorted({*docs, *known.get(task, [])}) for task, docs in documents.items()}

    def _guards(self, whole: Scores, disk: Scores, opponent: Scores) -> dict[str, Verdict]:
        found = self.judge.guards(disk, opponent)
        return found if self.ledger is None else together({**found, **held(self.ledger, self.experiment.guard, whole)})

    def _release(self, name: str, scores: Scores, folder: str) -> None:
        """A model as the next release of its line; `best/ledger.jsonl` travels with the model, refused ones set aside."""
        line = self.ledger or Ledger(self.record.directory.resolve().name)
        model = Checkpoint.open(self.record.directory / folder / "model").fingerprint
        line.add(f"{self.record.directory.resolve().name} {name}", model, scores).write(self.record.directory / folder / FILE)

    def _meets(self, name: str, task: str) -> bool:
        """Sealed guard documents are for the base and for whoever the guard compares with."""
        return task in self.opponents and name in ("base", self.opponents[task])

    def _reread(self, live: Scores) -> list[dict[str, Any]]:
        """Select documents on which the model read back from disk is scored otherwise than the candidate in memory was."""
        job = Job(None, self.splits.select, model=self.record.directory / "best" / "model")
        return _differing(live, self._score("select", {DISK: job})[DISK])

    def _score(self, split: str, jobs: Mapping[str, Job]) -> dict[str, Scores]:
        """Scores by name, those that an earlier run wrote among them; a job that fails here ends the study."""
        known = {name: scores for name in jobs if (scores := self._known(split, name))}
        for name, result in self.executor.run(_once(name, job) for name, job in jobs.items() if name not in known):
            if result.error:
                raise StudyError(f"{name} on {split} documents: {result.error}")
            known[name] = result.scores
            path = self.record.directory / split / f"{_filename(name)}.jsonl"
            path.parent.mkdir(exist_ok=True)
            result.scores.write(path)
            self.watch.note(f"{split}: {name}")
        return {name: known[name] for name in jobs}

    def _known(self, split: str, name: str) -> Scores | None:
        path = self.record.directory / split / f"{_filename(name)}.jsonl"
        return Scores.read(path) if path.exists() else None

    def _set_aside(self) -> None:
        """A refused model does not stay under the name of the best."""
        refused = self.record.directory / "refused"
        shutil.rmtree(refused, ignore_errors=True)
        (self.record.directory / "best").rename(refused)

    # --- repair: the nearest point to a refused model, on the segment to the base, that keeps the guards

    def _repair(self, select: Mapping[str, Scores], compared: Sequence[str], *, opened: bool) -> Certificate:
        """Found on search and select documents, judged on those held back for it; without any, on sealed ones: a second look
        where they were opened for the refused model."""
        if not self.opponents or not self.experiment.search.repair:
            return {}
        self.watch.phase("repair", self.experiment.search.repair)
        model, parent = self.record.directory / "refused" / "model", self.recipes["base"].base.model
        _, tried = next(self.executor.run(iter([_named("repair", self._bisected(model, parent, select))])))
        share, held_back = best_of(tried), self.splits.repair
        found = told(tried, "base", second_look=opened and not held_back)
        if share is None:
            return {"repair": found}
        save = Job(between(model, parent, share), {}, save=self.record.directory / REPAIRED / "model")
        _, result = next(self.executor.run(iter([_once(REPAIRED, save)])))
        if result.error:
            raise StudyError(f"the repaired model cannot be written: {result.error}")
        documents = held_back or self.splits.sealed
        sealed, whole = self._seal(compared, REPAIRED, REPAIRED, "repair" if held_back else "sealed", documents)
        disk = whole.select(documents)
        self._release(REPAIRED, whole, REPAIRED)
        judged = decide_ending(
            {name: self.judge.compare(disk, sealed[name]) for name in compared},
            self._guards(whole, disk, reference(self.opponents, sealed)),
        )
        return {"repair": {**found, **judged.to_data(), "sealed": self._summary(disk)}}

    def _bisected(self, model: Path, parent: str, select: Mapping[str, Scores]) -> Life[list[Tried]]:
        """On every search and select document of the guards, with the aim of the search: part of each tolerance."""
        known = reference(self.opponents, {name: scores + select[name] for name, scores in self.parents.items()})
        found = steering(self.experiment.guard, parent, self.ledger)

        def keeps(scores: Scores) -> bool:
            return all(one.excess(known.values(one.task), scores.values(one.task), AIM) <= 0 for one in found)

        return nearest(model, parent, known.documents, keeps, self.experiment.search.repair)

    # --- what the certificate says

    def _figures(self, best: Sequence[Outcome], select: Mapping[str, Scores]) -> Certificate:
        """How good the finalists looked, and how much of that was luck."""
        tasks = list(self.experiment.suite.tasks)
        values = [{task: o.scores.values(task) for task in tasks} for o in best]
        kinds: dict[str, Any] = {
            "kind": self.experiment.suite.aggregate,
            "weights": dict(self.experiment.suite.tasks),
            "references": self.judge.references,
        }
        shrunk = shrink_scores(values, **kinds).values if len(best) > 1 else [o.estimate.value for o in best if o.estimate]
        return {
            "finalists": [
                {
                    "name": o.name,
                    "naive": o.estimate.value if o.estimate else None,
                    "shrunk": float(shrunk[i]),
                    "select": self._summary(select[o.name]),
                }
                for i, o in enumerate(best)
            ],
            "optimism": optimism(values, **kinds, seed=self.experiment.search.seed) if len(best) > 1 else 0.0,
            "select": {contender.name: self._summary(contender.scores) for contender in self._contenders(select)},
        }

    def _winner(self, chosen: Contender, disk: Scores, differing: list[dict[str, Any]]) -> Certificate:
        assert chosen.outcome is not None
        return {
            "name": chosen.name,
            "healed": chosen.outcome.recipe.heal is not None,
            "distances": dict(chosen.outcome.distances),
            "sealed": self._summary(disk),
            "rows_that_differ_from_the_live_engine": differing,
        }

    def _summary(self, scores: Scores) -> Certificate:
        return {
            "value": self.judge.value(scores),
            "mean_skill": self.judge.mean_skill(scores),
            "tasks": scores.means(),
            "n": {task: len(scores.task(task)) for task in scores.tasks},
        }

    def _write(self, certificate: Certificate) -> Certificate:
        search = self.experiment.search
        whole = {
            "evomerge": __version__,
            "versions": versions(self.experiment.scoring),
            "scoring": self.experiment.scoring.to_data(),
            "aggregate": self.experiment.suite.aggregate,
            "splits": self.splits.hash,
            # more than one where a study went on after its certificate, or another had opened some: then they were not unseen
            **told_looks(self.record, self.splits),
            "seed": search.seed,
            "sampler": search.sampler,
            "limits": search.limits(),  # a study that is asked for more than this goes on
            "trials": len(self.outcomes),
            "documents": sum(outcome.documents for outcome in (*self.baselines.values(), *self.outcomes)),
            **certificate,
        }
        self.record.write_json("certificate.json", whole)
        return whole


def versions(scoring: ScoringConfig) -> dict[str, str]:
    """What the figures of a certificate were made with."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "optuna", "lm-eval")}
    if scoring.scorer == "vllm":
        from evomerge.scoring.vllm_engine import version

        found["vllm"] = version()
    return found


def _named(name: str, life: Life[T]) -> Life[tuple[str, T]]:
    return name, (yield from life)


def _once(name: str, job: Job) -> Life[tuple[str, Any]]:
    return name, (yield job)


def _differing(a: Scores, b: Scores) -> list[dict[str, Any]]:
    """Documents on which the live candidate and the model read back from disk were scored differently."""
    pairs = [(row, b.task(row.task)[row.doc]) for row in a.rows]
    return [{"task": x.task, "doc": x.doc, "live": x.value, "disk": y.value} for x, y in pairs if x.value != y.value]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _filename(name: str) -> str:
    return name.replace("/", "_")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
