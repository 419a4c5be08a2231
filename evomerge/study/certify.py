"""From the trials of a study to its certificate: select, choose, write, read back, and open the sealed documents once."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.guards.criteria import criteria, opponents, reference
from evomerge.guards.ledger import Ledger
from evomerge.guards.verdict import Verdict, together
from evomerge.mergekit import expressed
from evomerge.scoring.scores import Scores
from evomerge.scoring.suite import Splits
from evomerge.study.baselines import parents as parent_recipes
from evomerge.study.exam import Exam
from evomerge.study.executor import Executor, Job, Life
from evomerge.study.experiment import Experiment
from evomerge.study.lab import catalogue
from evomerge.study.line import FILE, held, known_documents, ledger_beside, steering
from evomerge.study.record import Record
from evomerge.study.repair import Tried, best_of, between, nearest, told
from evomerge.study.sealed import Opening, open_sealed
from evomerge.study.selection import Contender, Decision, Ending, Judge, choose, contending, decide_ending, finalists, rivals
from evomerge.study.summary import Certificate, differing, figures, header, of_winner, summary
from evomerge.study.trial import AIM, Outcome
from evomerge.study.watch import Watcher

DISK = "winner"  # the chosen one, as it lies on disk
REPAIRED = "repaired"


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
        self.exam = Exam(self.record, self.executor, self.watch)
        self.opened = False  # the sealed documents, for the chosen one
        self.recipes = parent_recipes(self.experiment.space)
        self.ledger = ledger_beside(self.recipes["base"].base.model)
        self.opponents = opponents(criteria(self.experiment.guard), self.parents)

    def certify(self) -> Certificate:
        """Everything after the last trial; writes `best/` and `certificate.json`, and returns the latter's content."""
        best = finalists(self.outcomes, self.experiment.search.finalists)
        others = finalists(self._contending(), len(self.baselines)) if self.outcomes else []
        if not best and not others:
            return self._write(self._nobody())
        select = self._select(best)
        chosen = self._choose(best, others, select)
        compared = self._compared(chosen, select)
        if chosen is None or chosen.outcome is None:
            reason = (
                f"none of {len(best or others)} {'finalists' if best else 'baselines'} keeps every guard on the select documents"
            )
            self._save(max(best or others, key=lambda o: self.judge.value(select[o.name])))
            self._set_aside()
            found = self._figures(best, select)
            return self._write({**found, **Decision(4, (reason,)).to_data(), **self._repair(select, compared, opened=False)})
        files = self._save(chosen.outcome)
        differs = self._reread(chosen.scores)
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
                **({"instead": self._why_none(best, chosen.name)} if chosen.name in self.baselines else {}),
                **self._figures(best, select),
                "winner": of_winner(self.judge, chosen, disk, differs),
                "sealed": {name: summary(self.judge, scores) for name, scores in {**sealed, "winner": disk}.items()},
                "files": files,
            }
        )

    def _write(self, certificate: Certificate) -> Certificate:
        scored = (*self.baselines.values(), *self.outcomes)
        whole = {**header(self.experiment, self.record, self.splits, len(self.outcomes), scored), **certificate}
        self.record.write_json("certificate.json", whole)
        return whole

    def _figures(self, best: Sequence[Outcome], select: Mapping[str, Scores]) -> Certificate:
        return figures(self.experiment, self.judge, best, select, self._contenders(select))

    def _choose(self, best: Sequence[Outcome], others: Sequence[Outcome], select: Mapping[str, Scores]) -> Contender | None:
        """The best of the finalists and baselines on select documents; none where guards refuse all finalists: one is mended."""
        opponent = reference(self.opponents, select)
        mine, theirs = ([Contender(o.name, select[o.name], o) for o in field] for field in (best, others))
        if mine and choose(mine, opponent, self.judge) is None:
            return None
        return choose([*mine, *theirs], opponent, self.judge)

    def _compared(self, chosen: Contender | None, select: Mapping[str, Scores]) -> list[str]:
        """The parents, and for a trial the best baselines; a baseline is compared with nothing that anybody could do by hand."""
        if chosen is not None and chosen.name in self.baselines:
            return list(self.parents)
        return [*self.parents, *(name for name in rivals(self._contenders(select), self.judge) if name not in self.parents)]

    def _why_none(self, best: Sequence[Outcome], name: str) -> str:
        """Why a baseline wins."""
        why = "no finalist is better on the select documents" if best else self._nobody()["reasons"][0]
        return f"the winner is the baseline {name}: {why}"

    def _nobody(self) -> Certificate:
        """No trial reached the top within its guards: refused if guards were what stopped them, else the parents stay."""
        broken = [o for o in self.outcomes if o.state != "failed" and not o.feasible]
        ending: Ending = 4 if broken and len(broken) == sum(o.state != "failed" for o in self.outcomes) else 3
        reason = "no trial kept the guards" if ending == 4 else "no trial reached the last rung within its guards"
        if not self.outcomes:
            reason = "no trial was run: parents and baselines took all of the budget; raise it, or score fewer documents"
        return Decision(ending, (reason,)).to_data()

    # --- select: fresh documents for the finalists, the parents and every baseline

    def _select(self, best: Sequence[Outcome]) -> dict[str, Scores]:
        recipes = {**self.recipes, **{o.name: o.recipe for o in (*self._contending(), *best)}}
        self.watch.phase("select", len(recipes))
        return self.exam.score("select", {name: Job(recipe, self.splits.select) for name, recipe in recipes.items()})

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
            self.exam.save(outcome.name, outcome.recipe, "best")
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
        scores = self.exam.score(split, jobs)
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
        return differing(live, self.exam.score("select", {DISK: job})[DISK])

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
        tried = self.exam.live(self._bisected(model, parent, select))
        share, held_back = best_of(tried), self.splits.repair
        found = told(tried, "base", second_look=opened and not held_back)
        if share is None:
            return {"repair": found}
        self.exam.save(REPAIRED, between(model, parent, share), REPAIRED)
        documents = held_back or self.splits.sealed
        sealed, whole = self._seal(compared, REPAIRED, REPAIRED, "repair" if held_back else "sealed", documents)
        disk = whole.select(documents)
        self._release(REPAIRED, whole, REPAIRED)
        judged = decide_ending(
            {name: self.judge.compare(disk, sealed[name]) for name in compared},
            self._guards(whole, disk, reference(self.opponents, sealed)),
        )
        return {"repair": {**found, **judged.to_data(), "sealed": summary(self.judge, disk)}}

    def _bisected(self, model: Path, parent: str, select: Mapping[str, Scores]) -> Life[list[Tried]]:
        """On every search and select document of the guards, with the aim of the search: part of each tolerance."""
        known = reference(self.opponents, {name: scores + select[name] for name, scores in self.parents.items()})
        found = steering(self.experiment.guard, parent, self.ledger)

        def keeps(scores: Scores) -> bool:
            return all(one.excess(known.values(one.task), scores.values(one.task), AIM) <= 0 for one in found)

        return nearest(model, parent, known.documents, keeps, self.experiment.search.repair)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
