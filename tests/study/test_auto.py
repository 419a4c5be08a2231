"""`auto`: what it picks, and that a study keeps what it picked."""

import json

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from evomerge.report.outlook import outlook
from evomerge.report.write import write_report
from evomerge.study.samplers import SAMPLERS, Auto, CmaEs, Gp, make_sampler, pick
from evomerge.study.search import search
from tests.laboratory import change
from tests.studies import Interrupt, parameters


def space_of(numbers, choices=0):
    floats = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(numbers)}
    return floats | {f"c{i}": CategoricalDistribution((0, 1, 2)) for i in range(choices)}


@pytest.mark.parametrize(
    ("space", "objectives", "trials", "pace", "name", "reason"),
    [
        (space_of(12), 1, 400, None, "cmaes", "begins at the start"),
        (space_of(12), 1, 100, None, "gp", "Gaussian process"),
        (space_of(12), 1, 100, 1.0, "cmaes", "milliseconds"),
        (space_of(12), 1, 100, 60.0, "gp", "Gaussian process"),
        (space_of(90), 1, 150, 6.0, "cmaes", "milliseconds"),
        (space_of(90), 1, 150, 9.0, "gp", "0.7 s"),
        (space_of(3, 5), 1, 400, 0.05, "cmaes", "milliseconds"),
        (space_of(3, 5), 1, 400, 0.5, "tpe", "choices"),
        (space_of(12), 2, 60, 0.01, "nsga2", "2 objectives"),
        (space_of(300), 1, 100, None, "cmaes", "diagonal"),
        (space_of(3, 5), 1, 400, None, "tpe", "choices"),
        (space_of(12), 2, 400, None, "nsga2", "2 objectives"),
        (space_of(12), 2, 60, None, "tpe", "too few trials"),
        (space_of(12), 5, 2000, None, "nsga3", "5 objectives"),
        ({"only": CategoricalDistribution((0,)), **space_of(1)}, 1, 1000, None, "cmaes", "1 numbers, 0 choices"),
    ],
)
def test_it_picks_by_dimensions_kinds_objectives_and_budget(space, objectives, trials, pace, name, reason):
    found = pick(space, objectives, trials, pace=pace)

    assert found.name == name
    assert reason in found.reason
    make_sampler(found.name, seed=0, space=space, **found.options)


@pytest.mark.parametrize(
    ("space", "objectives", "trials", "pace", "name"),
    [
        (space_of(12), 1, 100, None, "margins"),
        (space_of(12), 1, 400, 20.0, "margins"),
        (space_of(12), 1, 400, 1.0, "cmaes"),
        (space_of(12), 1, 1000, None, "cmaes"),
        (space_of(300), 1, 100, None, "cmaes"),
        (space_of(40), 1, 100, None, "margins"),
        (space_of(60), 1, 400, None, "cmaes"),
        (space_of(3, 5), 1, 400, None, "tpe"),
        (space_of(12), 2, 400, None, "nsga2"),
    ],
)
def test_where_single_documents_are_answered_it_picks_margins(space, objectives, trials, pace, name):
    assert pick(space, objectives, trials, pace=pace, answers=True).name == name


def test_it_proposes_what_the_one_it_picks_would():
    space = space_of(5)
    for trials, kind in ((300, CmaEs), (5, Gp)):
        auto, plain = (optuna.create_study(sampler=make(seed=4, space=space)) for make in (_auto(trials), kind))
        for _ in range(4):
            asked = [study.ask(space) for study in (auto, plain)]
            assert asked[0].params == asked[1].params
            for study, trial in zip((auto, plain), asked, strict=True):
                study.tell(trial, sum(trial.params.values()))


def _auto(trials):
    return lambda **known: Auto(trials=trials, **known)


def test_the_dry_run_the_progress_and_the_report_say_why(laboratory, capsys):
    space = change(laboratory, search={"sampler": "auto", "budget": "60s"})
    phases = []

    class Watch(Interrupt):
        def phase(self, name, total):
            phases.append(name)

    search(space, laboratory / "study", workers=1, trials=6, watch=Watch(1_000_000))
    write_report(laboratory / "study")

    said = "margins: 4 numbers, 0 choices, 6 trials: answers to single documents tell more than their mean"
    assert said in outlook(space, trials=6)
    assert f"auto picks {said}" in phases
    assert said in (laboratory / "study/report.md").read_text()


def test_a_study_asked_for_more_trials_keeps_its_pick(laboratory):
    space = change(laboratory, search={"sampler": "auto"})
    search(space, laboratory / "study", workers=1, trials=4)
    before = parameters(laboratory / "study")
    search(space, laboratory / "study", workers=1, trials=6, resume=True, reopen=True)
    search(change(laboratory, search={"sampler": "margins"}), laboratory / "other", workers=1, trials=6, reopen=True)

    assert json.loads((laboratory / "study/sampler.json").read_text())["name"] == "margins"
    assert parameters(laboratory / "study")[:4] == before
    assert parameters(laboratory / "study") == parameters(laboratory / "other")


def test_all_that_it_may_pick_are_in_the_table():
    from evomerge.study.samplers.auto import KINDS

    assert KINDS.items() <= SAMPLERS.items()
