"""What a sampler is told of single documents: margins whose sign is the score, in the order of the rungs, form by form."""

from dataclasses import replace

import pytest

from evomerge.recipe import Heal
from evomerge.scoring.scores import Row, Scores
from evomerge.scoring.suite import Splits
from evomerge.study.answers import answers_of
from evomerge.study.experiment import Experiment
from evomerge.study.race import Race
from evomerge.study.trial import Arena, Outcome

ORDER = (5, 2, 9, 0)  # of the search documents, two of them on the first rung


def rows(values, margins=None):
    given = margins or dict.fromkeys(values)
    return Scores.of(
        Row(task, doc, f"{task}{doc}", values[doc], given[doc] if task == "near" else None)
        for task in ("near", "close")
        for doc in values
    )


@pytest.fixture
def arena(laboratory):
    experiment = Experiment.read(laboratory / "space.yaml")
    splits = Splits(dict.fromkeys(("near", "close"), ORDER), ({"near": 2, "close": 2}, {"near": 4, "close": 4}), {}, {})
    arena = Arena(experiment, splits, Race(2))
    arena.parents = {"base": rows(dict.fromkeys(ORDER, 1.0))}
    return arena


@pytest.fixture
def recipe(arena):
    return arena.experiment.space.build(arena.experiment.space.start())


def test_answers_stand_in_the_order_of_the_rungs_and_their_sign_is_the_score(arena, recipe):
    values, margins = {0: 1.0, 2: 0.0, 5: 1.0, 9: 0.0}, {0: 0.00004, 2: -3.123456, 5: 2.0, 9: -0.5}

    told = answers_of(Outcome("0000-x", recipe, scores=rows(values, margins)), arena)

    assert told["answers"]["plain"]["near"] == [2.0, -3.123, -0.5, 0.00004]
    assert told["answers"]["plain"]["close"] == [0.5, -0.5, -0.5, 0.5]  # no margins: half of one
    assert told["graded"] == []


def test_a_trial_stopped_on_the_first_rung_has_answered_its_documents_alone(arena, recipe):
    told = answers_of(Outcome("0000-x", recipe, scores=rows({5: 1.0, 2: 0.0}, {5: 1.5, 2: -1.0})), arena)

    assert told["answers"]["plain"]["near"] == [1.5, -1.0]


def test_a_healed_trial_tells_both_of_its_forms(arena, recipe):
    healed = replace(recipe, heal=Heal(texts=("a",), tokens=512, teachers={"base": 1.0}))
    before, after = rows({5: 0.0}, {5: -1.0}), rows({5: 1.0}, {5: 2.0})

    both = answers_of(Outcome("0000-x", healed, scores=after, unhealed=before), arena)["answers"]
    only = answers_of(Outcome("0000-x", healed, scores=after), arena)["answers"]

    assert (both["plain"]["near"], both["healed"]["near"]) == ([-1.0], [2.0])
    assert only.keys() == {"healed"}


def test_a_task_that_a_parent_was_graded_at_tells_scores(arena, recipe):
    arena.parents = {"base": rows({5: 0.25, 2: 1.0, 9: 1.0, 0: 1.0})}

    told = answers_of(Outcome("0000-x", recipe, scores=rows({5: 1.0, 2: 0.75}, {5: 3.0, 2: 1.0})), arena)

    assert told["graded"] == ["close", "near"]
    assert told["answers"]["plain"]["near"] == [1.0, 0.75]
