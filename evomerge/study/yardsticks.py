"""What candidates are measured by, scored before any of them: the parents, and the baselines."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evomerge.errors import StudyError, SuiteError
from evomerge.recipe import Recipe
from evomerge.study.baselines import baselines, parents
from evomerge.study.executor import Executor, Job, Life, Result
from evomerge.study.objectives import refuse_textless
from evomerge.study.race import Arrival
from evomerge.study.record import Record
from evomerge.study.stored import stored_outcome
from evomerge.study.trial import Arena, Outcome, live
from evomerge.study.watch import Watcher


@dataclass
class Yardsticks:
    """Parents and baselines of a study; those that are on disk already are not scored again."""

    arena: Arena
    record: Record
    executor: Executor
    watch: Watcher

    # --- parents: on every search document, so that a candidate's subset can be compared with the whole

    def score_parents(self) -> None:
        """Fills `arena.parents`, and enters them in the race. Raises StudyError or SuiteError where one cannot be scored."""
        experiment = self.arena.experiment
        recipes = parents(experiment.space)
        self.watch.phase("parents", len(recipes))
        known = {name: scores for name in recipes if (scores := self.record.read_scores(f"baseline/{name}"))}
        lives = (self._parent(name, recipe) for name, recipe in recipes.items() if name not in known)
        for name, result in self.executor.run(lives):
            if result.error:
                raise StudyError(f"{name}: the parent cannot be scored: {result.error}")
            notes = {"state": "parent", "seconds": result.seconds, "distances": result.distances}
            self.record.write_scored(f"baseline/{name}", recipes[name], result.scores, notes)
            known[name] = result.scores
        self.arena.parents = {name: known[name] for name in recipes}
        refuse_textless(experiment.search.objectives, experiment.suite, self.arena.base)
        self._refuse_negative_means()
        for name in recipes:
            self.watch.scored(self._enter(name, recipes[name]), None)

    def _refuse_negative_means(self) -> None:
        """Metrics of which less is better are negated in rows: they can be averaged, and nothing else."""
        suite = self.arena.experiment.suite
        for task in suite.tasks:
            if suite.aggregate in ("geometric", "relative") and min(s.mean(task) for s in self.arena.parents.values()) < 0:
                raise SuiteError(
                    f"suite.aggregate: {suite.aggregate} takes no task whose scores are below 0, as {task}'s are; use mean or min"
                )

    def _parent(self, name: str, recipe: Recipe) -> Life[tuple[str, Result]]:
        splits = self.arena.splits
        job = Job(recipe, splits.rung(len(splits.rungs) - 1), measure=self.arena.experiment.guard.measures)
        return name, (yield job)

    def _enter(self, name: str, recipe: Recipe) -> Outcome:
        """A parent takes its place at every rung of the race."""
        rungs = len(self.arena.splits.rungs)
        distances = (self.record.read_json(f"baseline/{name}/verdict.json") or {}).get("distances", {})
        price = self.arena.experiment.guard.price(distances)
        outcome = Outcome(name, recipe, rung=rungs - 1, scores=self.arena.parents[name], distances=distances)
        for rung in range(rungs):
            estimate = self.arena.estimate(outcome.scores.select(self.arena.splits.rung(rung)))
            self.arena.race.arrive(Arrival(name, rung, estimate.value - price, baseline=True))
            outcome = replace(outcome, estimate=estimate)
        return outcome

    # --- baselines: candidates like any other, from recipes that somebody would try by hand

    def score_baselines(self) -> dict[str, Outcome]:
        """How each of them ended, by name."""
        experiment, found, new = self.arena.experiment, dict[str, Outcome](), dict[str, Recipe]()
        recipes = baselines(experiment.space) if experiment.search.baselines else {}
        self.watch.phase("baselines", len(recipes))
        for name, recipe in recipes.items():
            if stored := stored_outcome(self.record, self.arena, f"baseline/{name}", name, recipe):
                found[name] = stored
                self.watch.scored(stored, None)
            else:
                new[name] = recipe
        for outcome in self.executor.run(live(name, recipe, self.arena, earns_healing=False) for name, recipe in new.items()):
            self.record.write_scored(f"baseline/{outcome.name}", outcome.recipe, outcome.scores, outcome.to_data())
            found[outcome.name] = outcome
            self.watch.scored(outcome, None)
        return found
