"""Every sampler of the table: resumed it goes on as if never killed, and it works in any Optuna study."""

import json
import subprocess
import sys
import warnings

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from evomerge.errors import RecipeError
from evomerge.study.samplers import SAMPLERS, CmaEs, make_sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = {
    "weight": FloatDistribution(0.0, 1.2),
    "density": FloatDistribution(0.1, 1.0),
    "factor": FloatDistribution(1.0, 8.0, log=True),
    "layers": IntDistribution(1, 6),
    "choice": CategoricalDistribution((0, 1, 2)),
    "only": CategoricalDistribution((0,)),
}
FLOATS = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(4)}
WIDE = {f"x{i:03d}": FloatDistribution(0.0, 1.0) for i in range(101)} | {"layers": IntDistribution(1, 6)}
CHOICES = {f"c{i}": CategoricalDistribution((0, 1, 2)) for i in range(6)}  # none is a number

# name, options, space, trials: small populations and start-ups, so that each sampler is past its random beginning
CASES = {
    "cmaes": ("cmaes", {}, SPACE, 40),
    "cmaes plain": ("cmaes", {}, FLOATS, 40),
    "cmaes restarted": ("cmaes", {"population": 4, "collapsed": 0.15}, FLOATS, 40),
    "cmaes lr_adapt": ("cmaes", {"lr_adapt": True, "population": 4}, SPACE, 40),
    "cmaes from several": ("cmaes", {"start": [{"x0": 0.1}, {"x0": 0.9, "x1": 0.9}, {"x0": 0.2}]}, FLOATS, 40),
    "cmaes wide": ("cmaes", {"population": 5}, WIDE, 24),
    "tpe": ("tpe", {"n_startup_trials": 5}, SPACE, 24),
    "gp": ("gp", {"n_startup_trials": 3}, {"weight": SPACE["weight"], "choice": SPACE["choice"]}, 7),
    "nsga2": ("nsga2", {"population_size": 5}, SPACE, 40),
    "nsga3": ("nsga3", {"population_size": 5}, SPACE, 40),
    "cmaes choices": ("cmaes", {"population": 4}, CHOICES, 40),
    "margins": ("margins", {"first": 5}, SPACE, 14),
    "margins line": ("margins", {"first": 4}, {"weight": SPACE["weight"]}, 7),
    "niches": ("niches", {"archive": 6}, SPACE, 40),
    "portfolio": ("portfolio", {}, SPACE, 40),
    "portfolio of others": ("portfolio", {"arms": ["tpe", "random"], "start": [{"weight": 0.3}, {"weight": 0.6}]}, SPACE, 24),
    "auto": ("auto", {"trials": 200}, SPACE, 40),
    "qmc": ("qmc", {}, SPACE, 20),
    "random": ("random", {}, SPACE, 20),
    "foreign": ("optuna.samplers:NSGAIIISampler", {"population_size": 4}, SPACE, 12),
}


def sampler_of(case, seed=0, **more):
    name, options, space, _ = CASES[case]
    return make_sampler(name, seed=seed, space=space, **options, **more)


def study_of(sampler, trials=(), directions=("maximize",)):
    """A study in memory, as the controller builds it anew after a kill."""
    study = optuna.create_study(sampler=sampler, directions=list(directions))
    for trial in trials:
        study.add_trial(trial)
    return study


def value(params):
    """Best in one corner; flat places and ties as with shares of few documents."""
    return round(sum(x if isinstance(x, float) else x / 4 for x in params.values()), 1)


def finish(study, trial):
    """Most trials succeed, some violate a constraint, some fail."""
    if trial.number % 7 == 3:
        return study.tell(trial, state=TrialState.FAIL)
    trial.set_user_attr("documents", [float(x > 0.5) for x in trial.params.values() if isinstance(x, float)])  # for niches
    trial.set_constraint("guard", next(iter(trial.params.values())) - 0.8)
    return study.tell(trial, [value(trial.params)] * len(study.directions))


def go(study, space, count):
    """Ask and tell until the study has `count` trials."""
    while len(study.trials) < count:
        finish(study, study.ask(space))
    return study.trials


def proposals(trials):
    return [trial.params for trial in trials]


def journaled(trials, path):
    """The trials as a later process finds them: appended to a journal, one by one, and read back."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    journal = optuna.create_study(storage=storage, directions=["maximize"])
    for trial in trials:
        journal.add_trial(trial)
    again = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=journal.study_name, storage=again).trials


@pytest.mark.parametrize("case", [case for case in CASES if case != "foreign"])
def test_killed_after_any_trial_it_proposes_what_it_would_have_proposed(case, tmp_path):
    space, count = CASES[case][2:]
    whole = go(study_of(sampler_of(case)), space, count)
    kept = journaled(whole, tmp_path / "journal")

    for cut in range(0, count, 3 if case == "cmaes wide" else 1):
        resumed = go(study_of(sampler_of(case), kept[:cut]), space, min(cut + 2, count))
        assert proposals(resumed) == proposals(whole[: cut + 2]), f"killed after {cut}"


def test_the_restarted_case_restarts():
    study = study_of(sampler_of("cmaes restarted"))
    go(study, FLOATS, 40)

    assert study.sampler._replays[0].evolution.restarts == 1


@pytest.mark.parametrize("case", ["cmaes", "tpe", "nsga2", "nsga3"])
def test_killed_after_every_single_trial(case):
    """Nothing is rebuilt from what an earlier process left in memory, and what each adds is enough for the next."""
    space, count = CASES[case][2:]
    whole = go(study_of(sampler_of(case)), space, count)

    trials = []
    for done in range(count):
        trials = go(study_of(sampler_of(case), trials), space, done + 1)

    assert proposals(trials) == proposals(whole)


@pytest.mark.parametrize("case", ["cmaes", "tpe", "nsga2", "nsga3"])
def test_one_resumed_study_goes_on_to_the_same_end(case):
    space, count = CASES[case][2:]
    whole = go(study_of(sampler_of(case)), space, count)

    resumed = go(study_of(sampler_of(case), whole[:13]), space, count)

    assert proposals(resumed) == proposals(whole)


NAMES = ["auto", "cmaes", "tpe", "gp", "nsga2", "nsga3", "niches", "portfolio", "qmc", "random"]


def finish_in_this_process(path):
    """What the child of the next test runs: all studies of a journal go on to their end; their proposals are printed."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(path))
    kept = {name: optuna.load_study(study_name=name, storage=storage).trials for name in NAMES}
    json.dump({name: proposals(go(study_of(sampler_of(name), kept[name]), *CASES[name][2:])) for name in NAMES}, sys.stdout)


def test_another_process_goes_on_with_the_same_proposals(tmp_path, request):
    whole = {name: go(study_of(sampler_of(name)), *CASES[name][2:]) for name in NAMES}
    path = str(tmp_path / "journal")
    storage = optuna.storages.JournalStorage(JournalFileBackend(path))
    for name in NAMES:
        journal = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        for trial in whole[name][:-2]:
            journal.add_trial(trial)

    here = request.path
    child = (
        f"import sys; sys.path[:0] = [{str(here.parent)!r}]; import {here.stem} as here; here.finish_in_this_process({path!r})"
    )
    environment = {"PYTHONPATH": str(request.config.rootpath), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, env=environment, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: proposals(trials) for name, trials in whole.items()}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case not in ("cmaes from several", "portfolio of others")]
)  # first no draws
def test_the_seed_decides(case):
    space, count = CASES[case][2:]
    one, again, other = (proposals(go(study_of(sampler_of(case, seed)), space, min(count, 8))) for seed in (1, 1, 2))

    assert one == again
    assert one[0] != other[0]
    assert one[-1] != other[-1]


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("nsga2", "nsga3", "foreign", "cmaes choices")])
def test_no_proposal_comes_twice_and_all_lie_in_the_space(case):
    space, count = CASES[case][2:]
    trials = go(study_of(sampler_of(case)), space, count)

    assert len({json.dumps(trial.params) for trial in trials}) == len(trials)
    for trial in trials:
        assert trial.params.keys() == space.keys()
        assert all(d._contains(d.to_internal_repr(trial.params[name])) for name, d in space.items())


@pytest.mark.parametrize("kind", SAMPLERS.values())
def test_parameters_drawn_one_by_one_are_drawn_apart(kind):
    study = optuna.create_study(sampler=kind(seed=0))

    first, second = study.ask(FLOATS), study.ask(FLOATS)

    assert len({*first.params.values(), *second.params.values()}) == 2 * len(FLOATS)


@pytest.mark.parametrize("case", CASES)
def test_several_may_be_in_flight(case):
    """Three workers, the last asked finishing first."""
    space, count = CASES[case][2:]
    study = study_of(sampler_of(case))

    for _ in range(count // 3):
        for trial in reversed([study.ask(space) for _ in range(3)]):
            finish(study, trial)

    assert len({json.dumps(trial.params) for trial in study.trials}) > count // 3  # NSGA-II may cross twins


@pytest.mark.parametrize("case", ["random", "qmc", "cmaes"])
def test_trials_lost_in_flight_make_no_later_one_repeat(case, tmp_path):
    """Two of four were running when the study was killed; the finished ones move up in number."""
    space = CASES[case][2]
    study = study_of(sampler_of(case))
    asked = [study.ask(space) for _ in range(4)]
    kept = journaled([study.tell(asked[i], 0.5) for i in (3, 1)], tmp_path / "journal")

    resumed = study_of(sampler_of(case), kept)
    later = [resumed.ask(space).params for _ in range(3)]

    assert not any(params in proposals(kept) for params in later)


@pytest.mark.parametrize("kind", SAMPLERS.values())
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_plain_objective_works_by_itself(kind, direction):
    """Defined by running, with a parameter that only some trials have."""

    def objective(trial):
        x, k = trial.suggest_float("x", 0, 1), trial.suggest_int("k", 1, 9)
        factor = trial.suggest_float("factor", 1e-3, 1.0, log=True)
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            x += trial.suggest_float("more", 0, 1)
        return x + k * factor

    study = optuna.create_study(sampler=kind(seed=1), direction=direction)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.optimize(objective, n_trials=12)

    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 12
    assert len({trial.params["x"] for trial in study.trials}) > 9  # the end of a range may come twice


@pytest.mark.parametrize("case", ["tpe", "gp", "nsga2", "niches", "portfolio", "qmc", "random"])
def test_the_start_is_the_first_proposal_and_only_the_first(case):
    space = CASES[case][2]
    start = {"weight": 0.25, "choice": 2}
    study = study_of(sampler_of(case, start=start))

    first, second = study.ask(space).params, study.ask(space).params

    assert {name: first[name] for name in start} == start
    assert {name: second[name] for name in start} != start


@pytest.mark.parametrize("case", ["cmaes", "tpe", "gp", "nsga2", "niches", "portfolio", "qmc", "random"])
def test_several_starts_are_the_first_proposals_in_their_order(case):
    space = CASES[case][2]
    starts = [{"weight": 0.25, "choice": 2}, {"weight": 0.75, "choice": 0}]
    study = study_of(sampler_of(case, start=starts))

    asked = [study.ask(space).params for _ in range(3)]

    assert [{name: params[name] for name in ("weight", "choice")} for params in asked[:2]] == starts
    assert asked[2]["weight"] not in (0.25, 0.75)


@pytest.mark.parametrize("case", ["cmaes", "tpe", "gp", "nsga2"])
def test_a_baseline_outside_the_space_changes_no_space(case):
    """The base model has no parameters; an intersection with it would be empty, and the search random in silence."""
    space = CASES[case][2]
    baseline = create_trial(value=99.0, constraints={"guard": -1.0})
    study = study_of(sampler_of(case), [baseline, create_trial(state=TrialState.FAIL)])
    go(study, space, 10)

    trial = study.ask(space)

    assert trial.relative_params
    assert trial.relative_search_space.keys() == {name for name in space if name != "only"}


@pytest.mark.parametrize("case", ["tpe", "gp", "nsga2"])
def test_borrowed_samplers_see_no_trial_outside_the_space(case):
    space = CASES[case][2]
    study = study_of(sampler_of(case), [create_trial(value=99.0)])
    inside, running = study.tell(study.ask(space), 1.0), study.ask(space)

    seen = study.sampler._view(study, space)._get_trials()

    assert [trial.number for trial in seen] == [inside.number, running.number]


@pytest.mark.parametrize("case", ["tpe", "gp", "nsga2", "nsga3"])
def test_several_objectives_under_a_constraint(case):
    """x against 1 - x², where x may not pass one half."""
    name, options, _, count = CASES[case]
    space = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
    study = study_of(make_sampler(name, seed=0, space=space, **options), directions=["maximize", "maximize"])

    for _ in range(count):
        trial = study.ask(space)
        x, y = trial.params["x"], trial.params["y"]
        trial.set_constraint("half", x - 0.5)
        study.tell(trial, [x, 1 - x**2 - y])

    front = study.best_trials
    assert front
    assert all(trial.params["x"] <= 0.5 for trial in front)


def test_nsga2_approaches_the_front_of_two_objectives():
    space = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(6)}

    def distance(name, **options):
        study = study_of(make_sampler(name, seed=0, space=space, **options), directions=["minimize", "minimize"])
        for _ in range(200):
            trial = study.ask(space)
            first, *rest = trial.params.values()
            study.tell(trial, [first + sum(rest), 1 - first + sum(rest)])
        return np.mean([sum(list(trial.params.values())[1:]) for trial in study.best_trials])

    assert distance("nsga2", population_size=20) < 0.6 * distance("random")


@pytest.mark.parametrize("case", ["cmaes", "tpe", "gp"])
def test_a_constraint_is_kept_to(case):
    """The best lies where the constraint forbids: later proposals stay on the permitted side or near it."""
    name, options, _, _ = CASES[case]
    space = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
    study = study_of(make_sampler(name, seed=0, space=space, **options))
    count = 16 if case == "gp" else 80

    for _ in range(count):
        trial = study.ask(space)
        trial.set_constraint("x", trial.params["x"] - 0.25)
        study.tell(trial, trial.params["x"] - trial.params["y"])

    late = [trial.params["x"] for trial in study.trials[-count // 3 :]]
    assert np.mean(late) < 0.4
    assert study.best_trial.params["x"] > 0.15


def test_gp_takes_trials_that_lack_a_constraint_or_have_them_in_another_order():
    space = {"x": FloatDistribution(0.0, 1.0)}
    study = study_of(make_sampler("gp", seed=0, space=space, n_startup_trials=3))
    for order in (["a", "b"], ["b", "a"], [], ["a"], ["b", "a"]):
        trial = study.ask(space)
        for name in order:
            trial.set_constraint(name, {"a": -1.0, "b": 2.0}[name])
        study.tell(trial, trial.params["x"])

    view = study.sampler._view(study, space)

    assert study.ask(space).relative_params
    assert [list(trial.constraints.values()) for trial in view._get_trials() if trial.state.is_finished()] == [[-1.0, 2.0]] * 3


def test_an_enqueued_trial_is_tried_and_told():
    for case in ("cmaes", "tpe", "nsga2", "qmc", "random"):
        space = CASES[case][2]
        study = study_of(sampler_of(case))
        study.enqueue_trial({"weight": 0.125, "choice": 1})
        study.enqueue_trial({name: (d.low if hasattr(d, "low") else 0) for name, d in space.items()})

        trials = go(study, space, 14)

        assert trials[0].params["weight"] == 0.125
        assert trials[1].params["layers"] == 1
        assert len(trials) == 14


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("portfolio", {"arms": ["tep"]}, "no arm 'tep'"),
        ("niches", {"archive": 1}, "needs a mate"),
        ("cmae", {}, "'cmae' is not known; did you mean 'cmaes'"),
        ("nowhere:Sampler", {}, "cannot be imported"),
        ("optuna.samplers:Sampler", {}, "cannot be imported"),
        ("json:JSONDecoder", {}, "is not an optuna.samplers.BaseSampler"),
        ("cmaes", {"popsize": 3}, "popsize"),
        ("tpe", {"popsize": 3}, "popsize"),
    ],
)
def test_a_sampler_that_is_none_is_refused(name, options, message):
    with pytest.raises(RecipeError, match=message):
        make_sampler(name, seed=0, **options)


def test_our_own_classes_may_be_named_too():
    assert isinstance(make_sampler("evomerge.study.samplers:CmaEs", seed=0, sigma=0.1), CmaEs)
