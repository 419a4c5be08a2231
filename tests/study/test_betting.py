"""Betting on a candidate: α against a fixed reference however often one looks, and what a search does with the proof."""

import json

import numpy as np
import pytest

from evomerge.errors import EvomergeError, ScoringError
from evomerge.report.write import write_report
from evomerge.scoring.scores import Row, Scores
from evomerge.study.betting import enough, evidence, steps, wealth
from evomerge.study.search import search
from tests.laboratory import change
from tests.studies import Interrupt, certificate, ended, parameters

ALPHA = 0.05


def reject(differences):
    """Share of the rows that some look, after any document, would have called better."""
    return float((wealth(differences).max(axis=-1) >= 1 / ALPHA).mean())


def error(count):
    return 2 * (ALPHA * (1 - ALPHA) / count) ** 0.5


def drawn(kind, gain, repetitions=1500, documents=400):
    """Differences of a candidate and a fixed reference, with a mean of `gain`."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=(repetitions, documents))
    if kind == "0/1":
        return (rng.random(difficulty.shape) < 0.5 + gain).astype(float) - (rng.random(difficulty.shape) < 0.5)
    if kind == "paired":
        luck = rng.normal(scale=0.5, size=(2, *difficulty.shape))
        return (difficulty + luck[0] < 0.3 + 4 * gain).astype(float) - (difficulty + luck[1] < 0.3)
    skewed = rng.beta(0.3, 0.6, size=(2, *difficulty.shape))
    return np.clip(skewed[0] - skewed[1] + gain, -1, 1)


@pytest.mark.parametrize("kind", ["0/1", "paired", "skewed"])
def test_an_equal_candidate_is_called_better_at_any_look_no_oftener_than_alpha(kind):
    rate = reject(drawn(kind, 0.0))

    assert rate <= ALPHA + error(1500)


@pytest.mark.parametrize("kind", ["0/1", "paired"])
def test_a_worse_one_hardly_ever_and_a_better_one_nearly_always(kind):
    assert reject(drawn(kind, -0.05, 500)) <= 0.01
    assert reject(drawn(kind, 0.15, 500)) > 0.9


def test_against_the_best_of_many_equals_on_the_same_documents_alpha_does_not_hold():
    """Why nothing is claimed against an incumbent: it is the luckiest, so an equal looks worse."""
    rng = np.random.default_rng(1)
    difficulty = rng.normal(size=(300, 1, 400))
    many = (difficulty + rng.normal(scale=0.5, size=(300, 100, 400)) < 0).astype(float)
    best = np.take_along_axis(many[:, 1:], many[:, 1:].mean(axis=-1).argmax(axis=1)[:, None, None], axis=1)[:, 0]

    assert reject(best - many[:, 0]) > 2 * ALPHA


def test_a_bet_looks_at_the_past_alone():
    differences = np.random.default_rng(2).uniform(-1, 1, 60)
    changed = np.r_[differences[:40], np.random.default_rng(3).uniform(-1, 1, 20)]

    assert wealth(differences)[:40].tolist() == wealth(changed)[:40].tolist()
    ratio = wealth(differences)[40] / wealth(differences)[39], wealth(changed)[40] / wealth(changed)[39]
    bets = (ratio[0] - 1) / differences[40], (ratio[1] - 1) / changed[40]
    assert bets[0] == pytest.approx(bets[1])


def test_wealth_is_that_of_the_plain_loop():
    d = np.random.default_rng(4).choice([-1.0, 0.0, 1.0], 50, p=[0.2, 0.4, 0.4])
    money, seen, found = 1.0, [], []
    for x in d:
        mean, spread = sum(seen) / (len(seen) + 1), (sum(s * s for s in seen) + 0.25) / (len(seen) + 1)
        bet = min(max(mean / spread, 0.0), 0.5) if seen else 0.0
        money *= 1 + bet * x
        found.append(money)
        seen.append(x)

    assert wealth(d).tolist() == pytest.approx(found)


def scores(**tasks):
    return Scores.of(Row(task, i, str(i), v) for task, values in tasks.items() for i, v in enumerate(values))


def test_a_step_is_the_weighted_mean_over_the_next_document_of_each_task():
    candidate, base = scores(a=[1, 0, 1], b=[1, 1, 0]), scores(a=[0, 0, 1], b=[1, 0, 1])

    found = steps(candidate, base, {"a": 3.0, "b": 1.0}, {"a": [2, 0, 1], "b": [0, 1, 2]}, margin=0.1)

    assert found.tolist() == pytest.approx([(0 - 0.1) / 1.1, (3 / 4 + 1 / 4 - 0.1) / 1.1, (-1 / 4 - 0.1) / 1.1])


def test_scores_without_bounds_are_refused():
    with pytest.raises(ScoringError, match="a has scores outside 0 and 1"):
        steps(scores(a=[-3.0]), scores(a=[0.5]), {"a": 1.0}, {"a": [0]})


def test_all_trials_together_err_with_alpha():
    assert sum(1 / enough(k, ALPHA) for k in range(1, 100_000)) == pytest.approx(ALPHA, rel=1e-4)
    assert evidence([]) == (1.0, 1.0)


ANYTIME = {"anytime": {"against": "base", "accept": True}, "eta": 1, "trials": 30}


def test_a_search_ends_when_one_is_shown_to_be_better_than_a_fixed_parent(laboratory):
    space = change(laboratory, search=ANYTIME, suite={"rungs": [20, 400]})
    search(space, laboratory / "study", workers=1)
    write_report(laboratory / "study")

    accepted = json.loads((laboratory / "study/accepted.json").read_text())
    trials = sorted(path.name for path in (laboratory / "study/trials").iterdir())
    assert accepted["trial"] == trials[-1]
    assert len(trials) < 30
    assert (
        f"{trials[-1]} is better than base by more than 0, at α 0.05 over {len(trials)} trials"
        in (laboratory / "study/report.md").read_text()
    )
    states = [json.loads(p.read_text()) for p in (laboratory / "study/trials").glob("*/verdict.json")]
    assert all("worse than base" in note["reason"] for note in states if note["state"] == "stopped" and note["reason"] != "guard")


def test_an_interrupted_search_accepts_the_same_one(laboratory):
    space = change(laboratory, search=ANYTIME, suite={"rungs": [20, 400]})
    search(space, laboratory / "whole", workers=1)
    with pytest.raises(KeyboardInterrupt):
        search(space, laboratory / "study", workers=1, resume=True, watch=Interrupt(1))
    search(space, laboratory / "study", workers=1, resume=True)

    assert parameters(laboratory / "study") == parameters(laboratory / "whole")
    assert ended(laboratory / "study") == ended(laboratory / "whole")
    assert certificate(laboratory / "study")["winner"] == certificate(laboratory / "whole")["winner"]


def test_a_parent_that_is_none_is_refused(laboratory):
    with pytest.raises(EvomergeError, match="against 'bass', which is no parent here; did you mean 'base'"):
        search(change(laboratory, search={"anytime": {"against": "bass"}}), laboratory / "study", workers=1)
