"""CMA-ES: plain where nothing is special, constraints, steps, order of arrival, restarts."""

import random

import numpy as np
import optuna
import pytest
from cmaes import CMA, CMAwM, SepCMA
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from evomerge.study.samplers import CmaEs
from evomerge.study.samplers.cma_es import _told
from evomerge.study.samplers.cube import Cube
from evomerge.study.samplers.evolution import Evolution, Settings, Told, ranks
from evomerge.study.samplers.seeded import seed_for

optuna.logging.set_verbosity(optuna.logging.WARNING)

UNIT = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(5)}


def study_of(space, trials=(), direction="minimize", **options):
    study = optuna.create_study(sampler=CmaEs(space=space, **options), direction=direction)
    for trial in trials:
        study.add_trial(trial)
    return study


def sphere(params, centre=0.3):
    return sum((x - centre) ** 2 for x in params.values())


@pytest.mark.parametrize(("dims", "plain"), [(5, CMA), (120, SepCMA)])
def test_without_constraints_and_steps_it_is_plain_cma_es(dims, plain):
    space = {f"x{i:03d}": FloatDistribution(0.0, 1.0) for i in range(dims)}
    study = study_of(space, seed=3, population=7)
    reference = plain(np.full(dims, 0.5), 1 / 6, bounds=np.tile([0.0, 1.0], (dims, 1)), population_size=7)

    for generation in range(15):
        points = []
        for member in range(7):
            trial = study.ask(space)
            reference.reseed_rng(seed_for(3, 7 * generation + member))
            point = reference.ask()
            assert list(trial.params.values()) == point.tolist()
            study.tell(trial, sphere(trial.params))
            points.append((point, sphere(trial.params)))
        reference.tell(points)


def test_with_steps_it_is_cma_es_with_margin():
    """The distribution learns from the points before rounding, which only the trial's attributes keep."""
    space = {"a": FloatDistribution(0.0, 1.0), "b": IntDistribution(0, 4), "c": IntDistribution(0, 1)}
    study = study_of(space, population=6)
    bounds = np.array([[0.0, 1.0], [0.1, 0.9], [0.25, 0.75]])
    reference = CMAwM(np.full(3, 0.5), 1 / 6, bounds=bounds, steps=np.array([0.0, 0.2, 0.5]), population_size=6)

    for generation in range(12):
        told = []
        for member in range(6):
            trial = study.ask(space)
            reference.reseed_rng(seed_for(0, 6 * generation + member))
            point, raw = reference.ask()
            assert trial.params == {"a": point[0], "b": round(point[1] * 5 - 0.5), "c": round(point[2] * 2 - 0.5)}
            loss = abs(trial.params["a"] - 0.2) + abs(trial.params["b"] - 3) + trial.params["c"]
            study.tell(trial, loss)
            told.append((raw, loss))
        reference.tell(told)


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_it_finds_the_bottom_of_a_sphere(direction, sign):
    space = {"a": FloatDistribution(-2.0, 4.0), "b": FloatDistribution(0.0, 1.0), "c": FloatDistribution(0.0, 1.0)}
    study = study_of(space, direction=direction)

    study.optimize(
        lambda trial: sign * sphere({name: trial.suggest_float(name, d.low, d.high) for name, d in space.items()}), 250
    )

    assert abs(study.best_value) < 1e-5


def test_it_finds_the_best_step_and_choice():
    space = {"x": FloatDistribution(0.0, 1.0), "k": IntDistribution(-10, 10, step=2), "c": CategoricalDistribution("abc")}
    study = study_of(space, direction="maximize")

    for _ in range(200):
        trial = study.ask(space)
        p = trial.params
        study.tell(trial, -abs(p["x"] - 0.7) - abs(p["k"] - 6) / 20 - (p["c"] != "c"))

    assert study.best_params["k"] == 6
    assert study.best_params["c"] == "c"
    assert study.best_params["x"] == pytest.approx(0.7, abs=1e-3)


def test_no_option_of_a_choice_lies_between_others():
    """With the middle of the cube as its start, a step in the middle is proposed most; an option in the middle is not."""
    space = {"x": FloatDistribution(0.0, 1.0), "c": CategoricalDistribution("abcde"), "k": IntDistribution(0, 4)}
    study = study_of(space)

    asked = [study.ask(space).params for _ in range(500)]

    for option in "abcde":
        assert 70 < sum(params["c"] == option for params in asked) < 130
    assert sum(params["k"] == 2 for params in asked) > 180


@pytest.mark.parametrize("order", ["abcdefg", "gadcfbe"])
def test_the_best_option_is_learned_wherever_it_stands_and_none_is_given_up(order):
    """The two best are as far apart as can be, and those beside them are the worst."""
    space = {"x": FloatDistribution(0.0, 1.0), "c": CategoricalDistribution(order), "d": CategoricalDistribution(order)}
    worth = dict(zip("abcdefg", (0.9, 0.0, 0.2, 0.3, 0.2, 0.0, 1.0), strict=True))
    study = study_of(space, direction="maximize", population=8)

    for _ in range(240):
        trial = study.ask(space)
        study.tell(trial, worth[trial.params["c"]] + worth[trial.params["d"]] - abs(trial.params["x"] - 0.3))

    late = [trial.params for trial in study.trials[-80:]]
    for name in ("c", "d"):
        assert sum(worth[params[name]] >= 0.9 for params in late) > 60
        assert any(worth[params[name]] < 0.9 for params in late)
    assert study.best_params["x"] == pytest.approx(0.3, abs=0.05)


def test_a_logarithmic_range_is_searched_in_its_logarithm():
    space = {"rate": FloatDistribution(1e-6, 1.0, log=True), "x": FloatDistribution(0.0, 1.0)}
    study = study_of(space)

    rates = [study.ask(space).params["rate"] for _ in range(200)]

    assert np.median(np.log10(rates)) == pytest.approx(-3.0, abs=0.3)


def test_the_best_feasible_point_of_a_constrained_sphere_is_found():
    """Σ (x - .3)² where x0 must be at least .6: the best is .09, on the border."""
    study = study_of(UNIT, seed=1)
    for _ in range(400):
        trial = study.ask(UNIT)
        trial.set_constraint("x0", 0.6 - trial.params["x0"])
        study.tell(trial, sphere(trial.params))

    assert study.best_trial.params["x0"] >= 0.6
    assert study.best_value == pytest.approx(0.09, abs=2e-3)


def test_with_nothing_feasible_it_goes_where_the_violation_is_least():
    study = study_of(UNIT)
    for _ in range(200):
        trial = study.ask(UNIT)
        trial.set_constraint("far", 2.0 - trial.params["x0"])
        trial.set_constraint("never", 0.5)
        study.tell(trial, sphere(trial.params))

    assert np.mean([trial.params["x0"] for trial in study.trials[-30:]]) > 0.9


def test_feasible_ones_rank_first_the_others_by_their_violation():
    losses, violations = [-9.0, 5.0, -9.0, 4.0, 3.0], [2.0, 0.0, 1.0, 0.0, 0.0]
    told = [Told(np.zeros(1), loss, violation, 0) for loss, violation in zip(losses, violations, strict=True)]

    assert ranks(told) == [4, 2, 3, 1, 0]


def test_equals_rank_in_the_order_of_their_arrival():
    assert ranks([Told(np.zeros(1), 1.0, 0.0, 0)] * 3) == [0, 1, 2]


def test_it_learns_in_the_order_of_arrival_and_so_does_a_resumed_study():
    """Five in flight, finishing at random; the journal holds them as they finished."""
    live, rng = study_of(UNIT, seed=2), random.Random(0)
    running, arrived = [], []
    for _ in range(60):
        running += [live.ask(UNIT) for _ in range(5 - len(running))]
        trial = running.pop(rng.randrange(len(running)))
        arrived.append(live.tell(trial, sphere(trial.params)))
    while running:
        arrived.append(live.tell(trial := running.pop(), sphere(trial.params)))

    resumed = study_of(UNIT, arrived, seed=2)

    assert [trial.number for trial in arrived] != sorted(trial.number for trial in arrived)
    assert live.ask(UNIT).params == resumed.ask(UNIT).params


def test_no_generation_waits_for_its_slowest():
    """Trial 0 never ends; the others move the distribution all the same."""
    study = study_of(UNIT, population=6)
    study.ask(UNIT)

    for _ in range(120):
        trial = study.ask(UNIT)
        study.tell(trial, sphere(trial.params))

    assert study.best_value < 1e-2
    assert np.std([trial.params["x0"] for trial in study.trials[-20:]]) < 0.1


def states(study, **options):
    """The mean and covariance that the study's sampler goes on with, and those that a new one makes of the same trials."""
    replays = [each._caught_up(study, Cube(UNIT)) for each in (study.sampler, CmaEs(space=UNIT, **options))]
    study.sampler._replays.append(replays[0])
    return [(replay.seen, replay.evolution._cma.mean.tolist(), replay.evolution._cma._C.tolist()) for replay in replays]


def test_kept_state_and_state_told_from_the_first_are_the_same():
    study = study_of(UNIT, seed=5)

    for _ in range(50):
        trial = study.ask(UNIT)
        study.tell(trial, sphere(trial.params))
        kept, anew = states(study, seed=5)
        assert kept == anew


def test_trials_that_arrived_before_those_already_told_are_told_in_their_place():
    """Another study's trials, added in the middle of a search, keep the order that they had there."""
    other, study = study_of(UNIT, seed=6), study_of(UNIT, seed=5)
    for each in (other, study):
        for _ in range(20):
            trial = each.ask(UNIT)
            each.tell(trial, sphere(trial.params))
    for trial in other.trials:
        study.add_trial(trial)

    kept, anew = states(study, seed=5)

    assert kept == anew


def test_each_result_is_told_once():
    """Replaying all trials at every proposal would be right and slow."""
    study, told = study_of(UNIT), []
    for _ in range(30):
        trial = study.ask(UNIT)
        study.tell(trial, 0.0)
        told.append(study.sampler._replays[-1])

    assert all(replay is told[0] for replay in told)


def test_one_sampler_serves_two_studies():
    sampler, centres = CmaEs(space=UNIT), (0.1, 0.9)
    studies = [optuna.create_study(sampler=sampler) for _ in centres]
    alone = [study_of(UNIT) for _ in centres]

    for _ in range(30):
        for study, centre in zip([*studies, *alone], centres * 2, strict=True):
            trial = study.ask(UNIT)
            study.tell(trial, sphere(trial.params, centre))

    assert [[t.params for t in study.trials] for study in studies] == [[t.params for t in study.trials] for study in alone]


def test_an_enqueued_step_is_told_as_it_was_and_not_as_it_was_drawn():
    space = {"x": FloatDistribution(0.0, 1.0), "k": IntDistribution(0, 4)}
    study = study_of(space)
    study.enqueue_trial({"k": 4})
    trial = study.tell(study.ask(space), 1.0)

    told = _told(trial, Cube(space), 1.0)

    assert told.point[1] == 0.9
    assert told.run is None


def test_failed_trials_teach_nothing():
    """Failures after the last success leave the distribution where it was."""
    study = study_of(UNIT, population=4)
    for i in range(24):
        trial = study.ask(UNIT)
        if i % 3:
            study.tell(trial, sphere(trial.params))
        else:
            study.tell(trial, state=TrialState.FAIL)

    assert study.sampler._caught_up(study, Cube(UNIT)).evolution._cma.generation == 4


def test_a_point_of_others_is_drawn_in_and_one_of_its_own_is_not():
    evolution = Evolution(Settings((0.5,) * 4, (0,) * 4, seed=0, sigma=0.01, population=8, lr_adapt=False, collapsed=1e-4))
    far = np.array([1.0, 0.5, 0.5, 0.5])

    own, other = (evolution._reachable(Told(far, 0.0, 0.0, run)) for run in (0, None))

    assert own.tolist() == far.tolist()
    assert other.tolist() == pytest.approx([0.5 + 0.01 * (2 + 8 / 6), 0.5, 0.5, 0.5])  # √n + 2n / (n + 2) deviations


def test_baselines_in_a_corner_do_not_blow_the_distribution_up():
    corner = create_trial(params=dict.fromkeys(UNIT, 1.0), distributions=UNIT, value=-1.0)
    study = study_of(UNIT, [corner] * 4, population=8, sigma=0.05)
    for _ in range(8):
        trial = study.ask(UNIT)
        study.tell(trial, sphere(trial.params))

    assert study.sampler._caught_up(study, Cube(UNIT)).evolution._deviations().max() < 0.15


def test_a_collapsed_distribution_begins_again_elsewhere_with_twice_the_population():
    study = study_of(UNIT, population=6, collapsed=1e-3)
    for _ in range(400):
        trial = study.ask(UNIT)
        study.tell(trial, sphere(trial.params))
    evolution = study.sampler._caught_up(study, Cube(UNIT)).evolution

    assert evolution.restarts >= 1
    assert evolution._cma.population_size == 6 * 2**evolution.restarts


def test_each_restart_of_each_seed_begins_elsewhere_and_always_there():
    def begun(seed, restarts):
        settings = Settings((0.5,) * 4, (0,) * 4, seed=seed, sigma=0.1, population=8, lr_adapt=False, collapsed=1e-4)
        return tuple(Evolution(settings, restarts)._cma.mean.tolist())

    places = [(0, 1), (0, 2), (1, 1), (1, 2)]

    assert begun(0, 0) == begun(1, 0) == (0.5,) * 4
    assert len({begun(*place) for place in places}) == 4
    assert [begun(*place) for place in places] == [begun(*place) for place in places]


def test_the_start_is_the_centre_of_the_first_proposals():
    space = {**UNIT, "choice": CategoricalDistribution((0, 1))}
    study = study_of(space, start={"x0": 0.8, "x1": 0.2, "choice": 0}, sigma=0.02)

    first = [study.ask(space).params for _ in range(40)]

    middle = {name: np.mean([params[name] for params in first]) for name in ("x0", "x1", "x2", "choice")}
    assert middle == pytest.approx({"x0": 0.8, "x1": 0.2, "x2": 0.5, "choice": 0.5}, abs=0.2)
    assert middle["x0"] == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("told", [(0.1, 0.9, 0.2), (0.9, 0.1, 0.2)])
def test_of_several_starts_the_best_is_the_centre(told):
    starts = [{"x0": 0.1}, {"x0": 0.8}, {"x0": 0.5}]
    study = study_of(UNIT, start=starts, sigma=0.02)
    asked = [study.ask(UNIT) for _ in starts]
    early = study.ask(UNIT).params["x0"]  # by a second worker, before any start is told
    for trial, value in zip(asked, told, strict=True):
        study.tell(trial, value)

    first = [study.ask(UNIT).params["x0"] for _ in range(40)]

    best = starts[int(np.argmin(told))]["x0"] if study.direction.name == "MINIMIZE" else starts[int(np.argmax(told))]["x0"]
    assert early == pytest.approx(0.1, abs=0.1)
    assert np.mean(first) == pytest.approx(best, abs=0.03)


def test_several_objectives_are_refused():
    study = optuna.create_study(sampler=CmaEs(), directions=["minimize", "minimize"])

    with pytest.raises(ValueError, match="nsga2"):
        study.ask(UNIT)


def test_threads_share_a_study():
    study = study_of(UNIT)

    study.optimize(lambda trial: sphere({name: trial.suggest_float(name, 0, 1) for name in UNIT}), n_trials=60, n_jobs=4)

    assert len({trial.params["x0"] for trial in study.trials}) == 60


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (FloatDistribution(0.1, 1.0), [0.1, 0.4, 1.0]),
        (FloatDistribution(1.0, 8.0, log=True), [1.0, 2.5, 8.0]),
        (FloatDistribution(0.0, 1.0, step=0.25), [0.0, 0.25, 1.0]),
        (IntDistribution(1, 7), [1, 4, 7]),
        (IntDistribution(-10, 10, step=5), [-10, 0, 10]),
        (IntDistribution(1, 1024, log=True), [1, 32, 1024]),
        (CategoricalDistribution(("a", None, 3)), ["a", None, 3]),
    ],
)
def test_parameters_come_back_from_the_cube(distribution, values):
    cube = Cube({"p": distribution})

    back = [cube.params(cube.point({"p": value}))["p"] for value in values]
    assert back == values or back == pytest.approx(values, rel=1e-12)
    ends = [cube.params(np.array([x]))["p"] for x in (0.0, 1.0)]
    assert ends == [values[0], values[-1]]


def test_every_value_of_a_step_has_the_same_room():
    cube = Cube({"k": IntDistribution(1, 4), "c": CategoricalDistribution("ab")})
    drawn = [cube.params(np.array([x, x])) for x in (np.arange(1000) + 0.5) / 1000]

    assert [sum(p["k"] == k for p in drawn) for k in (1, 2, 3, 4)] == [250] * 4
    assert sum(p["c"] == "a" for p in drawn) == 500
    assert cube.point({"k": 2, "c": "b"}).tolist() == [0.375, 0.75]


def test_the_ends_of_a_logarithmic_integer_have_room_around_them():
    """1, 2 and 3 share log .5 to log 3.5: log 3, log 5/3 and log 7/5 of log 7."""
    cube = Cube({"k": IntDistribution(1, 3, log=True)})
    drawn = [cube.params(np.array([x]))["k"] for x in (np.arange(10_000) + 0.5) / 10_000]

    assert [drawn.count(k) / 10_000 for k in (1, 2, 3)] == pytest.approx([0.5646, 0.2625, 0.1729], abs=2e-4)


def test_what_a_choice_leaves_unused_is_not_learned_from():
    """Two studies that differ in nothing but numbers without a say go on alike; were they learned from, they would not."""
    space = {"on": CategoricalDistribution((0, 1)), "scale": FloatDistribution(0.0, 1.0), "x": FloatDistribution(0.0, 1.0)}
    rng = random.Random(0)
    trials = [{"on": i % 2, "scale": rng.random(), "x": rng.random()} for i in range(40)]
    others = [{**params, "scale": params["scale"] if params["on"] else rng.random()} for params in trials]

    def next_params(history, active):
        values = [params["x"] + params["on"] * params["scale"] for params in history]
        told = [create_trial(params=p, distributions=space, value=v) for p, v in zip(history, values, strict=True)]
        return study_of(space, told, seed=1, population=8, active=active).ask(space).params

    def used(params):
        return {"on", "x", *["scale"] * params["on"]}

    assert next_params(trials, used) == next_params(others, used)
    assert next_params(trials, None) != next_params(others, None)
    assert next_params(trials, used)["scale"] != next_params(trials, None)["scale"]
