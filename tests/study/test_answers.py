"""What a sampler is told of single documents: margins whose sign is the score, in the order of the rungs, form by form."""

from dataclasses import replace

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import Heal
from evomerge.scoring.scores import Row, Scores
from evomerge.scoring.suite import Splits
from evomerge.study.answers import answers_of
from evomerge.study.experiment import Experiment
from evomerge.study.proposer import picked, sampler_of
from evomerge.study.race import Race
from evomerge.study.search import search
from evomerge.study.trial import Arena, Outcome
from tests.laboratory import change
from tests.studies import parameters

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


def test_a_study_whose_aggregate_is_relative_is_searched_by_margins(laboratory):
    space = change(laboratory, suite={"aggregate": "relative"}, search={"sampler": "margins", "sampler_options": {"first": 4}})

    assert search(space, laboratory / "study", workers=1, trials=7) in (0, 3, 4, 5)
    assert len(parameters(laboratory / "study")) == 7


def test_prices_are_refused_by_name_and_auto_picks_somebody_else(laboratory):
    priced = {"ewc": {"fisher": "fishers", "weights": {"base": 1.0}}}
    named = Experiment.read(change(laboratory, guard=priced, search={"sampler": "margins"}))

    with pytest.raises(RecipeError, match=r"guard\.ewc\.weights: .* give guard\.ewc\.limits"):
        sampler_of(named)
    found = picked(Experiment.read(change(laboratory, search={"sampler": "auto"})))
    assert found is not None
    assert found.name == "gp"
