import numpy as np
import pytest

from evomerge.scoring.landscape import Landscape

MANY = range(100_000)


def at(landscape, x):
    return dict.fromkeys(landscape.names, x)


def test_truth_at_the_optimum_and_in_the_middle_is_what_was_asked_for():
    landscape = Landscape(dims=6, top=0.8, middle=0.6)

    assert landscape.mean(landscape.optimum) == pytest.approx(0.8)
    assert landscape.mean(at(landscape, 0.5)) == pytest.approx(0.6)


@pytest.mark.parametrize("x", [0.3, 0.5])
def test_the_share_answered_is_the_truth(x):
    landscape = Landscape(dims=6)

    share = landscape.score(at(landscape, x), MANY).mean()

    assert share == pytest.approx(landscape.mean(at(landscape, x)), abs=4 * 0.5 / len(MANY) ** 0.5)


def test_nothing_beats_the_optimum():
    landscape = Landscape(dims=3)
    rng = np.random.default_rng(0)

    others = [landscape.mean(dict(zip(landscape.names, rng.random(3), strict=True))) for _ in range(200)]

    assert max(others) < landscape.mean(landscape.optimum)


def test_a_score_depends_on_its_document_and_not_on_its_company():
    landscape = Landscape()

    together = landscape.score(at(landscape, 0.4), range(100))

    assert together[40:50].tolist() == landscape.score(at(landscape, 0.4), range(40, 50)).tolist()


def test_the_order_of_the_parameters_is_their_names():
    landscape = Landscape(dims=3)
    parameters = {"x000": 0.1, "x001": 0.5, "x002": 0.9}

    assert landscape.mean(dict(reversed(parameters.items()))) == landscape.mean(parameters)


def test_other_parameters_meet_the_same_difficulties_with_other_luck():
    landscape = Landscape(spread=1.0, luck=0.5)
    one, other = (landscape.margin(at(landscape, x), MANY) for x in (0.5, 0.500001))

    correlation = np.corrcoef(one, other)[0, 1]

    assert correlation == pytest.approx(1.0**2 / (1.0**2 + 0.5**2), abs=0.01)


def test_margins_are_normal_around_the_skill():
    landscape = Landscape(top=0.5, middle=0.4, spread=1.0, luck=0.5)
    margin = landscape.margin(landscape.optimum, MANY)

    assert [margin.mean(), margin.std(), (margin**3).mean()] == pytest.approx([0.0, 1.25**0.5, 0.0], abs=0.03)


def test_seeds_differ_and_repeat():
    documents = range(50)
    scores = [Landscape(seed=seed).score(at(Landscape(), 0.5), documents).tolist() for seed in (1, 1, 2)]

    assert scores[0] == scores[1] != scores[2]


def test_scores_stay_what_they_were():
    landscape = Landscape(dims=2, seed=3)

    assert landscape.score({"x000": 0.25, "x001": 0.75}, range(12)).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
