"""Who is chosen, and what may be said of it."""

from dataclasses import replace

import pytest

from evomerge.document import Place
from evomerge.guards.paired import compare
from evomerge.guards.regression import decide
from evomerge.recipe import Context, Recipe
from evomerge.scoring.scores import Row, Scores
from evomerge.study.estimate import Estimate, TaskEstimate
from evomerge.study.experiment import Experiment
from evomerge.study.selection import Contender, Judge, choose, contending, decide_ending, finalists, rivals
from evomerge.study.stages import _best as best_place
from evomerge.study.trial import Outcome


def recipe(weight):
    rule = {"match": "*", "method": "linear", "weight": weight}
    return Recipe.from_data({"base": "b", "sources": {"a": "m"}, "rules": [rule]}, Place("x.yaml"))


def outcome(name, value, se=0.01, *, weight=1.0, **changes):
    estimate = Estimate(value, se, 100, {"task": TaskEstimate(value, se, 100)})
    return Outcome(name, recipe(weight), **{"rung": 2, "estimate": estimate, **changes})


def right(count, of=400):
    """0/1 scores: the first `count` documents right."""
    return {doc: float(doc < count) for doc in range(of)}


BETTER = compare(right(300), right(200))
UNSURE = compare({**right(200), 399: 1.0}, right(200))
BEHIND = compare(right(200), right(200))
PASSED = decide(right(380), right(379), 0.05)
REFUSED = decide(right(380), right(300), 0.05)
UNDECIDED = decide(right(380, 390), right(372, 390), 0.03)


@pytest.mark.parametrize(
    ("comparisons", "guards", "ending"),
    [
        ({"base": BETTER}, {"kept": PASSED}, 0),
        ({"base": BETTER}, {}, 0),
        ({"base": BETTER, "average": UNSURE}, {"kept": PASSED}, 5),
        ({"base": BETTER}, {"kept": UNDECIDED}, 5),
        ({"base": BETTER, "average": BEHIND}, {"kept": UNDECIDED}, 3),
        ({"base": BETTER, "average": BEHIND}, {"kept": REFUSED}, 4),
        ({"base": BETTER}, {"kept": PASSED, "other": REFUSED}, 4),
    ],
)
def test_the_first_ending_that_applies_is_the_verdict(comparisons, guards, ending):
    decision = decide_ending(comparisons, guards)

    assert decision.ending == ending
    assert decision.reasons


def test_comparisons_are_corrected_for_their_number():
    alone, among = (decide_ending(dict.fromkeys(names, BETTER), {}).adjusted for names in (["a"], ["a", "b", "c"]))

    assert among["a"] == pytest.approx(3 * alone["a"])


def test_an_undecided_comparison_says_how_many_documents_would_decide():
    decision = decide_ending({"base": UNSURE}, {})

    # one document of 400: d = .0025, se = .0025: 400 · (2.4865 · se / d)² ≈ 2,470
    assert "about 24" in decision.reasons[0]
    assert "sealed documents would decide" in decision.reasons[0]


@pytest.mark.parametrize(("most", "names"), [(1, ["high"]), (2, ["high", "middle"]), (9, ["high", "middle", "below", "lowest"])])
def test_finalists_are_the_best_of_those_that_climbed_highest_within_their_guards(most, names):
    found = finalists(
        [
            outcome("lowest", 0.5, rung=1, weight=0.1),
            outcome("high", 0.9, weight=0.2),
            outcome("stopped", 0.95, state="stopped", weight=0.3),
            outcome("below", 0.96, rung=1, weight=0.4),
            outcome("broken", 0.97, constraints={"kept": 0.01}, weight=0.5),
            outcome("middle", 0.7, constraints={"kept": -0.01}, weight=0.6),
            outcome("again", 0.9, weight=0.2),
        ],
        most,
    )

    assert [o.name for o in found] == names


def test_the_best_of_all_places_is_the_one_on_the_highest_rung():
    """What stands first in the progress, in the second stage and in a warm start: few documents flatter."""
    outcomes = [
        outcome("lucky", 0.9, rung=1),
        outcome("known", 0.6),
        outcome("less", 0.5),
        outcome("broken", 0.95, state="stopped"),
    ]

    assert best_place(outcomes) == 1
    assert best_place(outcomes[:1]) == 0
    assert [o.standing for o in outcomes] == [(1, 0.9), (2, 0.6), (2, 0.5), None]


def test_a_baseline_clearly_behind_the_best_is_out_of_reach():
    best, near, far, vague = outcome("best", 0.6), outcome("near", 0.57), outcome("far", 0.5), outcome("vague", 0.5, se=0.05)

    assert [o.name for o in contending([best, near, far, vague])] == ["best", "near", "vague"]
    assert contending([]) == []


def test_a_baseline_is_measured_against_its_own_kind():
    extended = outcome("base-yarn", 0.9)
    extended = replace(extended, recipe=replace(extended.recipe, context=Context("yarn", 2.0)))
    merged, behind = outcome("average", 0.6), outcome("ties", 0.5)

    assert [o.name for o in contending([extended, merged, behind])] == ["average", "base-yarn"]


def scored(near, close, kept):
    counts = {"near": near, "close": close, "kept": kept}
    return Scores(tuple(Row(task, doc, f"{task}{doc}", float(doc < n)) for task, n in counts.items() for doc in range(100)))


def test_the_best_on_select_that_keeps_its_guards_there_is_chosen(laboratory):
    judge, base = Judge(Experiment.read(laboratory / "space.yaml"), None), scored(50, 50, 90)
    contenders = [
        Contender("good", scored(70, 70, 85)),
        Contender("better", scored(80, 80, 85)),
        Contender("forgets", scored(95, 95, 70)),  # loses 20 points of the guard, 10 are allowed
        Contender(
            "lopsided", scored(100, 55, 90)
        ),  # the higher mean of two tasks than "good", the lower geometric one than "better"
    ]

    chosen = choose(contenders, base, judge)

    assert chosen is not None
    assert chosen.name == "better"
    assert choose(contenders[2:3], base, judge) is None


def test_rivals_are_the_best_by_each_measure_and_the_best_plain_merge(laboratory):
    judge = Judge(Experiment.read(laboratory / "space.yaml"), None)
    extended = outcome("base-yarn", 0.9)
    extended = replace(extended, recipe=replace(extended.recipe, context=Context("yarn", 2.0)))
    baselines = [
        Contender("base-yarn", scored(80, 80, 90), extended),
        Contender("lopsided", scored(100, 62, 90), outcome("lopsided", 0.8)),  # mean .81, geometric .787
        Contender("weak", scored(50, 50, 90), outcome("weak", 0.5)),
    ]

    assert rivals(baselines, judge) == ["base-yarn", "lopsided"]
