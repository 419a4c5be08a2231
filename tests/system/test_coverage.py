"""Whole studies, hundreds of them, whose truth is known: the intervals of their certificates cover it as often as they say.

Each runs the real loop in memory: parents, CMA-ES, races on nested rungs, finalists on select documents, one on sealed ones.
Only the models are points of a landscape, where a document's difficulty and each answer's luck are drawn anew for every study.
"""

import math
from dataclasses import replace

import optuna
import pytest

from evomerge.bench.simulated import Points, write_experiment
from evomerge.guards.aggregate import aggregate
from evomerge.scoring.landscape import Landscape
from evomerge.scoring.scores import Scores
from evomerge.scoring.suite import split
from evomerge.study.baselines import parents
from evomerge.study.executor import InProcess, Job
from evomerge.study.experiment import Experiment
from evomerge.study.race import Race
from evomerge.study.samplers import make_sampler
from evomerge.study.selection import Contender, Judge, choose, decide_ending, finalists
from evomerge.study.trial import Arena, live

STUDIES, TRIALS, DIMS, NOMINAL = 150, 12, 6, 0.95
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landscape")
    path = write_experiment(folder, DIMS, eta=2)
    path.write_text(path.read_text().replace("96", "30").replace("384", "60").replace("960", "120").replace("600", "200"))
    return Experiment.read(path)


def certified(experiment, top, seed, split_name="sealed"):
    """The comparisons of one study's certificate with the truth about them: [(comparison, true difference)], and its ending."""
    tasks = experiment.suite.tasks
    landscapes = {task: Landscape(DIMS, seed=2 * seed + i, top=top) for i, task in enumerate(tasks)}
    worker = Points(landscapes, experiment.root / "base")
    splits = split(experiment.suite, None, {task: [f"{task} {i}" for i in range(4000)] for task in tasks})
    arena, known = Arena(experiment, splits, Race(len(splits.rungs), 2)), parents(experiment.space)
    top_rung = len(splits.rungs) - 1
    arena.parents = {name: worker.evaluate(Job(recipe, splits.rung(top_rung))).scores for name, recipe in known.items()}

    dimensions = experiment.space.distributions()
    study = optuna.create_study(direction="maximize", sampler=make_sampler("cmaes", seed=seed, space=dimensions))
    outcomes, lane = [], InProcess(lambda: worker)
    for number in range(TRIALS):
        trial = study.ask(dimensions)
        (outcome,) = lane.run(iter([live(f"{number:04d}", experiment.space.build(trial.params), arena)]))
        study.tell(trial, outcome.told)
        outcomes.append(outcome)

    judge = Judge(experiment, None)
    best = finalists(outcomes, 5)
    contenders = [Contender(o.name, worker.evaluate(Job(o.recipe, splits.select)).scores, o) for o in best]
    recipe = choose(contenders, Scores(), judge).outcome.recipe
    documents = getattr(splits, split_name)
    winner = worker.evaluate(Job(recipe, documents)).scores
    rows = {name: worker.evaluate(Job(parent, documents)).scores for name, parent in known.items()}
    found = {name: judge.compare(winner, scores) for name, scores in rows.items()}

    def truth(one):
        means = {task: landscape.mean(worker.place(one)) for task, landscape in landscapes.items()}
        return float(aggregate(means, experiment.suite.aggregate, dict(tasks)))

    decision = decide_ending(found, {})
    return [(found[name], truth(recipe) - truth(parent)) for name, parent in known.items()], decision


def share(found):
    """How often the interval held the truth, and the Monte-Carlo error of that where it is nominal."""
    covered = [c.low <= true <= c.high for comparisons, _ in found for c, true in comparisons]
    # the comparisons of one study share its winner: as if there were one a study
    return sum(covered) / len(covered), math.sqrt(NOMINAL * (1 - NOMINAL) / len(found))


@pytest.mark.parametrize("top", [0.75, 0.5501], ids=["something to find", "nothing to find"])
def test_intervals_of_whole_studies_cover_the_truth_as_often_as_they_say(experiment, top, record_property):
    found = [certified(experiment, top, seed) for seed in range(STUDIES)]

    covered, error = share(found)
    false = sum(decision.ending == 0 and min(true for _, true in comparisons) <= 0 for comparisons, decision in found)
    record_property("coverage", covered)
    print(f"coverage {covered:.4f} ± {error:.4f} of {STUDIES} studies, false certificates {false / STUDIES:.4f}")  # noqa: T201
    assert covered >= NOMINAL - 2 * error
    assert false / STUDIES <= 1 - NOMINAL + 2 * error


def test_intervals_half_as_wide_would_be_noticed(experiment):
    found = [certified(experiment, 0.75, seed) for seed in range(40)]
    halved = [([(_halved(c), true) for c, true in comparisons], decision) for comparisons, decision in found]

    covered, error = share(halved)
    assert covered < NOMINAL - 2 * error


def _halved(comparison):
    low, high = ((comparison.difference + end) / 2 for end in (comparison.low, comparison.high))
    return replace(comparison, low=low, high=high)
