"""A recipe's life, driven by hand: what it asks for, and what becomes of it."""

from dataclasses import replace

import pytest

from evomerge.recipe import Heal
from evomerge.scoring.scores import Row, Scores
from evomerge.scoring.suite import Splits
from evomerge.study.executor import Result
from evomerge.study.experiment import Experiment
from evomerge.study.race import Arrival, Race
from evomerge.study.trial import Arena, live

TASKS = ("near", "close", "kept")


def answers(documents, right):
    """Scores in which the first `right` of ten documents are right."""
    rows = (Row(task, doc, f"{task}{doc}", float(doc % 10 < right[task])) for task, docs in documents.items() for doc in docs)
    return Scores.of(rows)


@pytest.fixture
def arena(laboratory):
    experiment = Experiment.read(laboratory / "space.yaml")
    everything = tuple(range(40))
    splits = Splits(dict.fromkeys(TASKS, everything), (dict.fromkeys(TASKS, 10), dict.fromkeys(TASKS, 40)), {}, {})
    arena = Arena(experiment, splits, Race(2, eta=2))
    arena.parents = {"base": answers(dict.fromkeys(TASKS, everything), dict.fromkeys(TASKS, 5))}
    for rung in range(2):
        arena.race.arrive(Arrival("base", rung, 0.5, baseline=True))
    return arena


@pytest.fixture
def recipe(arena):
    return arena.experiment.space.build(arena.experiment.space.start())


def run(life, right):
    """The outcome of a life whose answers are right so often, and the jobs it asked for."""
    jobs, result = [], None
    try:
        while True:
            jobs.append(life.send(result))
            result = Result(answers(jobs[-1].documents, right), seconds={"score": 1.0})
    except StopIteration as end:
        return end.value, jobs


GOOD, WEAK = {"near": 8, "close": 8, "kept": 5}, {"near": 2, "close": 2, "kept": 5}


def test_only_new_documents_are_asked_at_each_rung(arena, recipe):
    outcome, jobs = run(live("0000-x", recipe, arena), GOOD)

    assert [{task: len(docs) for task, docs in job.documents.items()} for job in jobs] == [
        dict.fromkeys(TASKS, 10),
        dict.fromkeys(TASKS, 30),
    ]
    assert (outcome.state, outcome.rung, outcome.documents) == ("survived", 1, 120)
    assert outcome.told == pytest.approx(0.8)
    assert outcome.seconds == {"score": 2.0}


def test_a_life_that_may_climb_to_the_first_rung_ends_there_and_is_told_its_estimate(arena, recipe):
    outcome, jobs = run(live("0000-x", recipe, arena, ceiling=0), GOOD)

    assert [sum(map(len, job.documents.values())) for job in jobs] == [30]
    assert (outcome.state, outcome.rung, outcome.told) == ("survived", 0, pytest.approx(0.8))


def test_healing_is_earned_below_the_ceiling(arena, recipe):
    arena.experiment = replace(arena.experiment, search=replace(arena.experiment.search, heal_after=1))
    good, jobs = run(live("0000-x", healing(recipe), arena, ceiling=0), GOOD)

    assert [job.recipe.heal is not None for job in jobs] == [False, True]
    assert (good.state, good.rung, good.recipe.heal is not None) == ("survived", 0, True)


def test_a_candidate_that_falls_behind_is_stopped_and_told_below_the_survivors(arena, recipe):
    survivor, _ = run(live("0000-x", recipe, arena), GOOD)
    outcome, jobs = run(live("0001-y", recipe, arena), WEAK)

    assert (outcome.state, outcome.reason, len(jobs)) == ("stopped", "behind", 1)
    assert outcome.told == pytest.approx(0.2)
    assert outcome.told < survivor.told


def test_a_candidate_that_clearly_forgets_is_stopped_by_the_guard(arena, recipe):
    outcome, _ = run(live("0000-x", recipe, arena), {**GOOD, "kept": 0})

    assert (outcome.state, outcome.reason) == ("stopped", "guard")


def test_the_search_aims_at_half_of_a_guards_tolerance(arena, recipe):
    outcome, _ = run(live("0000-x", recipe, arena), {**GOOD, "kept": 4})

    # the base has .5 and the candidate .4 of the guard; the tolerance is .1
    assert outcome.constraints["kept"] == pytest.approx(0.1 - 0.05)
    assert not outcome.feasible


def test_a_failed_job_is_the_end_of_the_life_and_its_reason(arena, recipe):
    life = live("0000-x", recipe, arena)
    next(life)
    with pytest.raises(StopIteration) as end:
        life.send(Result(error="ValueError: no"))

    assert (end.value.value.state, end.value.value.reason) == ("failed", "ValueError: no")


def healing(recipe):
    return replace(recipe, heal=Heal(tokens=10, texts="t.jsonl", teachers={"a": 1.0}))


def test_healing_is_paid_for_only_by_what_survives_its_rung_unhealed(arena, recipe):
    weak, weak_jobs = run(live("0000-x", healing(recipe), arena), WEAK)
    good, jobs = run(live("0001-y", healing(recipe), arena), GOOD)

    assert [job.recipe.heal is not None for job in weak_jobs] == [False]
    assert weak.recipe.heal is None
    assert [job.recipe.heal is not None for job in jobs] == [False, True, True]
    assert good.recipe.heal is not None
    assert len(good.unhealed) == 30
    assert good.documents == 30 + 120


def test_the_rung_that_pays_for_healing_is_mild_and_the_race_of_the_healed_is_not(arena, recipe):
    run(live("0000-x", healing(recipe), arena), GOOD)
    outcome, jobs = run(live("0001-y", healing(recipe), arena), {"near": 6, "close": 6, "kept": 5})

    # second of three unhealed, the base among them: one in 2 would not go on, one in 1.5 does; healed it is second of two
    assert [job.recipe.heal is not None for job in jobs] == [False, True]
    assert (outcome.state, outcome.rung, outcome.recipe.heal is not None) == ("stopped", 0, True)


def test_a_healed_baseline_need_not_earn_it(arena, recipe):
    outcome, jobs = run(live("base-healed", healing(recipe), arena, earns_healing=False), GOOD)

    assert all(job.recipe.heal is not None for job in jobs)
    assert outcome.unhealed is None
