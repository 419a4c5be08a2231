"""Margins foretell single documents: from few trials they know more than a mean can tell, whatever was left unscored."""

import warnings

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from evomerge.study.samplers import make_sampler
from evomerge.study.samplers.cube import Cube
from evomerge.study.samplers.kriging import Kernel, Processes, _unlikely, chosen, noisy
from evomerge.study.samplers.margins import Features, Foretold, Margins

optuna.logging.set_verbosity(optuna.logging.WARNING)

UP = optuna.study.StudyDirection.MAXIMIZE
XY = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}


def drawn(seed, points=12, dims=3, answers=5):
    rng = np.random.default_rng(seed)
    return rng.random((points, dims)), rng.standard_normal((points, answers)) + rng.standard_normal(answers)


@given(st.integers(0, 50), st.sampled_from([0.3, 0.8, 2.0]), st.sampled_from([0.01, 0.3]))
def test_many_answers_are_foretold_as_scikit_learn_foretells_each(seed, length, noise):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    lengths = length * np.array([1.0, 0.5, 3.0])
    (points, answers), (others, _) = drawn(seed), drawn(seed + 1000, points=4)
    mean, deviation = Processes(points, answers, Kernel(lengths, noise)).predict(others)

    theirs = GaussianProcessRegressor(RBF(lengths), alpha=noise, optimizer=None)
    theirs.fit(points, answers - answers.mean(axis=0))
    expected, spread = theirs.predict(others, return_std=True)
    np.testing.assert_allclose(mean, expected + answers.mean(axis=0), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(np.broadcast_to(deviation[:, None], spread.shape), spread, rtol=1e-6)


@given(st.integers(0, 50))
def test_how_likely_a_kernel_is_and_its_slope_are_those_of_scikit_learn(seed):
    """Theirs of each answer by itself, at the scale of ours, with what is usual taken out again."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    points, answers = drawn(seed)
    place = np.random.default_rng(seed).normal([-0.5, 0.0, 1.0, -2.0], 0.5)
    products = answers @ answers.T / answers.shape[1]
    value, slope = _unlikely(place, points, products, place[:-1], 1.0)

    kernel = RBF(np.exp(place[:-1])) + WhiteKernel(np.exp(place[-1]))
    scale = np.trace(np.linalg.solve(kernel(points), products)) / len(points)
    theirs = [GaussianProcessRegressor(kernel, alpha=0, optimizer=None).fit(points, y / np.sqrt(scale)) for y in answers.T]
    likely = [model.log_marginal_likelihood(place, eval_gradient=True) for model in theirs]
    constant = len(points) * (np.log(2 * np.pi) - np.log(scale) + 1) / 2
    np.testing.assert_allclose(value, -constant - np.mean([each for each, _ in likely]), rtol=1e-8)
    np.testing.assert_allclose(slope, -np.mean([each for _, each in likely], axis=0), rtol=1e-6, atol=1e-8)


def test_a_dimension_that_matters_little_gets_a_great_length_and_small_noise_is_seen_to_be_small():
    rng = np.random.default_rng(5)
    points = rng.random((40, 6))
    answers = np.sin(5 * points[:, :2] @ rng.standard_normal((2, 30))) + 0.05 * rng.standard_normal((40, 30))

    kernel = chosen(points, answers - answers.mean(axis=0))

    assert kernel.lengths[2:].min() > 2 * kernel.lengths[:2].max()
    assert kernel.noise < 0.1


def shared_function_under(luck, seed):
    """How well the mean of 200 answers that share one function of 12 dimensions is foretold elsewhere, by their own kernel and by
    the one that is taken: correlations with the truth. `luck` is the noise of an answer, in units of the function's spread."""
    rng = np.random.default_rng(seed)
    points, others = 0.5 + 0.15 * rng.standard_normal((80, 12)), 0.5 + 0.15 * rng.standard_normal((60, 12))
    slope, bend = rng.standard_normal(12), rng.standard_normal(12)
    truths = [np.cos((each - 0.5) @ bend) + (each - 0.5) @ slope for each in (points, others)]
    answers = truths[0][:, None] + luck * np.std(truths[0]) * rng.standard_normal((80, 200))
    own = chosen(points, answers - answers.mean(axis=0))
    foretold = [Processes(points, answers, kernel).predict(others)[0].mean(axis=1) for kernel in (own, None)]
    return own, Processes(points, answers).kernel, [np.corrcoef(each, truths[1])[0, 1] for each in foretold]


def test_where_luck_makes_most_of_an_answer_the_kernel_is_that_of_their_mean():
    found = [shared_function_under(2.0, seed)[2] for seed in range(6)]

    own, taken = np.mean(found, axis=0)
    assert 1 - taken < (1 - own) / 2


def test_where_answers_bend_for_themselves_the_kernel_is_their_own():
    own, taken, _ = shared_function_under(0.05, seed=0)

    assert np.array_equal(taken.lengths, own.lengths)
    assert taken.noise == own.noise


def test_a_single_noisy_number_is_foretold_better_along_the_lengths_of_many_documents():
    """Twenty-four trials in 17 dimensions that matter unequally; the number is a slope of one, measured with an error of one."""
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        matters = np.exp(0.8 * rng.standard_normal(17))
        points, others = 0.5 + 0.12 * rng.standard_normal((24, 17)), 0.5 + 0.12 * rng.standard_normal((60, 17))
        documents = np.sin(0.6 * (points - 0.5) @ (matters[:, None] * rng.standard_normal((17, 150))))
        slope = matters * rng.standard_normal(17)
        slope /= 0.12 * np.linalg.norm(slope)
        number, truth = ((points - 0.5) @ slope + rng.standard_normal(24))[:, None], (others - 0.5) @ slope
        known = Processes(points, documents).kernel
        alone, along = (Processes(points, number, kernel) for kernel in (None, noisy(known, points, number)))
        mean, deviation = along.predict(others)
        surprise = (truth - mean[:, 0]) / (along.scale[0] * np.sqrt(deviation**2 + along.kernel.noise))
        agreed = [np.corrcoef(each.predict(others)[0][:, 0], truth)[0, 1] for each in (alone, along)]
        found.append([*agreed, np.square(surprise).mean()])

    alone, along, surprised = np.mean(found, axis=0)
    assert along > alone + 0.05
    assert surprised < 1.2  # no surer than it may be


def test_constraints_are_foretold_along_the_lengths_of_the_documents():
    trials = [told(x, y, np.sin(9 * x + np.arange(40))) for x, y in GRID]
    for trial in trials:
        trial.set_constraint("guard", trial.params["y"] - 0.5)
    known = foretold(trials)

    assert known.limits is not None
    np.testing.assert_array_equal(known.limits.kernel.lengths, known.parts[0].processes.kernel.lengths)
    assert known.limits.kernel.lengths[1] > 2 * known.limits.kernel.lengths[0]  # no document minds y


def test_nothing_is_left_to_find_out_where_somebody_is_scoring_already():
    points, answers = drawn(4)
    there = np.full((1, 3), 0.9)
    before = Processes(points, answers, Kernel(np.full(3, 0.5), 0.03))
    after = before.believing(there)

    assert after.predict(there)[1] < 0.5 * before.predict(there)[1]
    np.testing.assert_allclose(after.predict(there)[0], before.predict(there)[0], atol=0.3)


def search(name, seed, tell_answers=True, trials=32, dims=10):
    """The true share of documents that the best of some trials answers, by its own estimate from 24 of them.

    Each document has a place of its own where it is answered best, around one that is good for many.
    """
    rng = np.random.default_rng(seed)
    places = rng.uniform(0.1, 0.9, dims) + 0.15 * rng.standard_normal((2000, dims))
    space = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(dims)}
    study = optuna.create_study(direction="maximize", sampler=make_sampler(name, seed=seed, space=space))
    best = (-1.0, 0.0)
    for _ in range(trials):
        trial = study.ask(space)
        margins = 0.25 - ((np.array([trial.params[x] for x in space]) - places) ** 2).sum(axis=1)
        if tell_answers:
            trial.set_user_attr("answers", {"plain": {"task": margins[:24].tolist()}})
        estimate = float((margins[:24] > 0).mean())
        best = max(best, (estimate, float((margins > 0).mean())))
        study.tell(trial, estimate)
    return 100 * best[1]


def test_margins_of_documents_are_worth_more_than_their_mean():
    searches = (("margins", True), ("margins", False), ("cmaes", True))
    told, untold, evolved = (np.mean([search(name, seed, tell) for seed in range(3)]) for name, tell in searches)

    assert told > untold + 3
    assert told > evolved + 3


def told(x, y, answers, graded=()):
    attrs = {"answers": {"plain": {"task": list(map(float, answers))}}, "graded": list(graded)}
    return create_trial(params={"x": x, "y": y}, distributions=XY, value=0.5, user_attrs=attrs)


def foretold(trials, healed=False, combine=None):
    sampler = Margins(space=XY)
    return Foretold(trials, Features(Cube(XY), sampler, healed), combine or sampler.combine, UP)


def test_what_is_being_scored_already_promises_nothing_new():
    trials = [told(x, y, [x - 0.5] * 6) for x, y in ((0.1, 0.1), (0.3, 0.2), (0.2, 0.3), (0.4, 0.1), (0.1, 0.4))]
    there = np.array([[0.9, 0.9]])
    promised, known = foretold(trials), foretold(trials).believing([{"x": 0.9, "y": 0.9}])

    assert promised(there, 2.0) - promised(there, 0.0) > 2 * (known(there, 2.0) - known(there, 0.0))


def test_trials_that_answered_nothing_count_only_as_long_as_none_did():
    study = optuna.create_study(direction="maximize", sampler=Margins(space=XY, first=4, seed=3))
    for x, y in GRID:
        study.add_trial(create_trial(params={"x": y, "y": x}, distributions=XY, value=1 - x))
        trial = told(x, y, [x - 0.5] * 4)
        trial.value = x
        study.add_trial(trial)

    assert study.ask(XY).params["x"] > 0.7


def test_a_trial_with_fewer_constraints_than_others_tells_nothing_of_them():
    study = optuna.create_study(direction="maximize", sampler=make_sampler("margins", seed=0, space=XY, first=4))
    for number in range(10):
        trial = study.ask(XY)
        for name in ("one", "two")[: 1 + number % 2]:
            trial.set_constraint(name, trial.params["x"] - 0.5)
        study.tell(trial, trial.params["x"])

    assert len(study.trials) == 10


GRID = [(x, y) for x in (0.1, 0.3, 0.5, 0.7, 0.9) for y in (0.2, 0.8)]


def test_documents_of_a_higher_rung_count_as_soon_as_four_trials_have_answered_them():
    low = [told(x, y, [x - 0.5] * 2) for x, y in GRID]
    high = [told(x, y, [x - 0.5] * 2 + [0.5 - x] * 6) for x, y in GRID[:1] + GRID[4:5] + GRID[-2:]]
    right = np.array([[0.9, 0.5]])

    assert foretold(low)(right, 0.0) > 0.8
    assert foretold(low + high[:3])(right, 0.0) > 0.8
    assert foretold(low + high)(right, 0.0) < 0.5  # six of eight say the contrary
    assert [len(part.owner) for part in foretold(low + high).parts] == [2, 6]  # each document once


def test_a_graded_task_is_foretold_as_its_score_and_others_as_chances():
    trials = [told(x, y, [10 * x, 10 * x], graded=["task"]) for x, y in GRID]

    assert foretold(trials)(np.array([[0.6, 0.5]]), 0.0) == pytest.approx(6.0, abs=0.5)
    assert 0 <= foretold([told(x, y, [10 * x]) for x, y in GRID])(np.array([[0.6, 0.5]]), 0.0) <= 1


def test_what_was_healed_is_foretold_healed_and_learns_from_the_plain_form():
    trials = []
    for x, y in GRID:
        trial = told(x, y, [x - 0.8] * 4)
        trial.user_attrs["answers"]["healed"] = {"task": [x - 0.2] * 4}
        trials.append(trial if x > 0.4 else told(x, y, [x - 0.8] * 4))
    worth = foretold(trials, healed=True)

    assert worth(np.array([[0.5, 0.5]]), 0.0) > 0.7
    assert foretold([told(x, y, [x - 0.8] * 4) for x, y in GRID])(np.array([[0.5, 0.5]]), 0.0) < 0.3


def test_what_is_likely_to_break_a_constraint_is_worth_less():
    study = optuna.create_study(direction="maximize", sampler=make_sampler("margins", seed=1, space=XY))
    late = []
    for number in range(24):
        trial = study.ask(XY)
        x, y = trial.params["x"], trial.params["y"]
        trial.set_user_attr("answers", {"plain": {"task": [x + y - difficulty for difficulty in np.linspace(0, 2, 20)]}})
        trial.set_constraint("guard", x + y - 1.2)
        study.tell(trial, (x + y) / 2)
        late += [x + y] if number >= 14 else []

    assert np.mean([total <= 1.2 for total in late]) >= 0.7
    assert max(total for total in late if total <= 1.2) > 1.05  # and yet close to where it is best


def test_options_are_equally_far_apart_and_none_lies_between_others():
    space = {"kind": CategoricalDistribution(("a", "b", "c")), "x": FloatDistribution(0.0, 1.0)}
    features = Features(Cube(space), Margins(space=space), False)(np.array([[1 / 6, 0.4], [3 / 6, 0.4], [5 / 6, 0.4]]))
    apart = [np.linalg.norm(features[i] - features[j]) for i, j in ((0, 1), (1, 2), (0, 2))]

    np.testing.assert_allclose(apart, 1.0)


def test_too_few_first_trials_and_several_objectives_are_refused():
    with pytest.raises(TypeError, match="fewer than 4"):
        Margins(first=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["maximize", "maximize"], sampler=Margins(space=XY))
    with pytest.raises(ValueError, match="one objective"):
        study.ask(XY)
