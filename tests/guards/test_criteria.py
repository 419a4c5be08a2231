"""Limits of guard tasks: read strictly, turned the right way, against the right parent, decided together."""

import pytest

from evomerge.document import Place
from evomerge.errors import DocumentError, GuardError
from evomerge.guards.criteria import Criterion, criteria, opponents, reference, refuse_undecidable, verdicts
from evomerge.scoring.scores import Row, Scores
from evomerge.scoring.suite import GuardConfig


def guard(**tasks):
    return GuardConfig.from_data({"tasks": tasks}, Place("x.yaml", "guard"))


def rows(task, values):
    return Scores.of(Row(task, doc, f"h{doc}", float(value)) for doc, value in enumerate(values))


def right(task, count, of=400):
    return rows(task, [doc < count for doc in range(of)])


def test_a_number_is_a_loss_against_the_base_and_a_mapping_says_more():
    found = criteria(guard(a=0.02, b={"loss": 0.03, "against": "best"}, c={"flips": 0.01, "floor": 0.9, "choices": 4}))

    assert found == (
        Criterion("a", "loss", 0.02),
        Criterion("b", "loss", 0.03, "best"),
        Criterion("c", "flips", 0.01, "base", 4),
        Criterion("c", "floor", 0.9, "base", 4),
    )
    assert [one.name for one in found] == ["a", "b", "c flips", "c floor"]


def test_a_ceiling_is_a_floor_under_the_negated_rows():
    (one,) = criteria(guard(toxicity={"ceiling": 0.2}))

    low, high = rows("toxicity", [-0.1] * 50).values("toxicity"), rows("toxicity", [-0.4] * 50).values("toxicity")
    assert one.excess({}, low) == pytest.approx(-0.1)
    assert one.excess({}, high) == pytest.approx(0.2)
    assert (one.broken({}, low), one.broken({}, high)) == (False, True)


def test_bounds_survive_a_round_trip():
    config = guard(a=0.02, c={"flips": 0.01, "ceiling": 0.9, "against": "best"})

    assert GuardConfig.from_data(config.to_data(), Place("x.yaml", "guard")) == config


@pytest.mark.parametrize(
    ("bound", "error", "message"),
    [
        ({}, GuardError, "guard.tasks.a: bounds nothing; give loss, flips, floor or ceiling"),
        ({"floor": 0.5, "ceiling": 0.6}, GuardError, "has a floor and a ceiling"),
        ({"flips": 1.5}, DocumentError, "1.5 is outside"),
        ({"loss": 0.02, "against": "parent"}, DocumentError, "'parent' is not known"),
        ({"los": 0.02}, DocumentError, "unknown key 'los'; did you mean 'loss'"),
        ({"loss": 0.02, "choices": 1}, DocumentError, "1 is outside"),
    ],
)
def test_a_bound_that_says_nothing_or_too_much_is_refused_in_one_line(bound, error, message):
    with pytest.raises(error, match=message) as caught:
        guard(a=bound)
    assert "\n" not in str(caught.value)


def test_the_best_parent_is_the_one_that_is_best_at_the_task():
    found = criteria(guard(a=0.02, b={"loss": 0.02, "against": "best"}))
    parents = {
        "base": right("a", 300) + right("b", 200),
        "x": right("a", 390) + right("b", 350),
        "y": right("a", 100) + right("b", 100),
    }

    met = opponents(found, parents)

    assert met == {"a": "base", "b": "x"}
    assert reference(met, parents).means() == {"a": 300 / 400, "b": 350 / 400}


@pytest.mark.parametrize("measure", ["loss", "flips", "floor"])
@pytest.mark.parametrize(("kept", "outcome"), [(400, "passed"), (390, "undecided"), (350, "refused")])
def test_estimate_race_and_verdict_agree_for_every_measure(measure, kept, outcome):
    one = Criterion("a", measure, 0.97 if measure == "floor" else 0.03)
    parent, candidate = right("a", 400).values("a"), right("a", kept).values("a")

    assert one.decide(parent, candidate).outcome == outcome
    assert one.excess(parent, candidate) == pytest.approx((400 - kept) / 400 - 0.03)
    assert one.broken(parent, candidate) == (outcome == "refused")


def test_flips_of_guessing_are_told_where_choices_are_known():
    parent = {doc: float(doc % 4 == 0) for doc in range(400)}
    candidate = {doc: float(doc % 4 == 1) for doc in range(400)}

    verdict = Criterion("a", "flips", 0.5, choices=4).decide(parent, candidate)

    assert verdict.chance_flips == 3 / 16
    assert verdict.adjusted_flips == pytest.approx(0.25 - 3 / 16)
    assert Criterion("a", "flips", 0.5).decide(parent, candidate).adjusted_flips is None


def test_several_guards_are_judged_together():
    found = criteria(guard(a={"flips": 0.02}, b={"flips": 0.02}, c={"flips": 0.02}))
    parent = right("a", 400) + right("b", 400) + right("c", 400)
    candidate = right("a", 386) + right("b", 399) + right("c", 399)

    judged = verdicts(found, parent, candidate)

    assert judged["a flips"].p_refuse < 0.05 < judged["a flips"].p_holm
    assert [verdict.outcome for verdict in judged.values()] == ["undecided", "passed", "passed"]


def test_too_few_documents_for_a_budget_of_flips_are_refused_before_anything_runs():
    with pytest.raises(GuardError, match=r"guard\.tasks\.a: 100 sealed documents cannot pass a budget of 0\.02 .* 149 would"):
        refuse_undecidable(guard(a={"flips": 0.02}), {"a": range(100)})
    with pytest.raises(GuardError, match="no number would"):
        refuse_undecidable(guard(a={"flips": 0.0}), {"a": range(100)})
    refuse_undecidable(guard(a={"flips": 0.02}), {"a": range(149)})
