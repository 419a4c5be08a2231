"""A copy of the trials in a database: each once, in the journal's order, whenever it is begun; PostgreSQL is in tests/system."""

import importlib.util
import json

import optuna
import pytest

from evomerge.errors import EvomergeError, MissingExtra, StudyError
from evomerge.study.search import search
from evomerge.study.storage import Copy, hidden, refuse_url
from tests.studies import Interrupt, parameters

MAXIMIZE = [optuna.study.StudyDirection.MAXIMIZE]


def trial(number):
    return optuna.trial.create_trial(
        params={"x": number / 10},
        distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
        value=float(number),
        user_attrs={"folder": f"{number:04d}"},
    )


def stored(url, name=None):
    name = name or optuna.study.get_all_study_names(url)[0]
    return [(t.number, t.params, t.values, t.user_attrs) for t in optuna.load_study(study_name=name, storage=url).trials]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'trials.db'}"


def test_trials_arrive_once_and_in_order_however_often_they_are_sent(url):
    for ended in (0, 1, 3, 4):
        copy = Copy(url, "mine")
        copy.begin(MAXIMIZE, [trial(number) for number in range(ended)])
        copy.append(trial(ended))
        assert copy.close() == 0

    # each run began with all that the others had sent, and one with what nobody had: 0002 came by the journal
    assert stored(url, "mine") == [(n, {"x": n / 10}, [float(n)], {"folder": f"{n:04d}"}) for n in range(5)]


def test_a_search_that_was_interrupted_has_the_same_trials_in_both(laboratory, url):
    with pytest.raises(KeyboardInterrupt):
        search(laboratory / "space.yaml", laboratory / "study", workers=1, trials=4, watch=Interrupt(2))
    with pytest.raises(KeyboardInterrupt):
        search(laboratory / "space.yaml", laboratory / "study", workers=1, trials=4, resume=True, storage=url, watch=Interrupt(1))
    search(laboratory / "space.yaml", laboratory / "study", workers=1, trials=4, resume=True, storage=url)

    assert [params for _, params, *_ in stored(url)] == parameters(laboratory / "study")
    assert json.loads((laboratory / "study/storage.json").read_text())["study"].startswith("study-")


def test_a_finished_study_can_be_copied_afterwards(laboratory, url):
    search(laboratory / "space.yaml", laboratory / "study", workers=1, trials=2)
    search(laboratory / "space.yaml", laboratory / "study", workers=1, trials=2, resume=True, storage=url)

    assert [params for _, params, *_ in stored(url)] == parameters(laboratory / "study")


def test_a_password_is_not_shown():
    assert hidden("postgresql+psycopg2://me:secret@host/db") == "postgresql+psycopg2://me:***@host/db"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("trials.db", "^--storage: expected postgresql.psycopg2://USER@HOST/DATABASE, not 'trials.db'$"),
        ("sqlite:////nowhere/trials.db", "^--storage: sqlite:////nowhere/trials.db cannot be opened .*unable to open"),
    ],
)
def test_what_is_no_database_is_refused_in_one_line(url, message):
    with pytest.raises(StudyError, match=message):
        Copy(url, "x")


@pytest.mark.skipif(importlib.util.find_spec("psycopg2") is not None, reason="psycopg2 is installed here")
def test_without_its_driver_a_search_says_how_to_get_it_and_writes_nothing(laboratory):
    with pytest.raises(MissingExtra, match=r'^--storage: psycopg2 is not installed: pip install "evomerge\[postgresql\]"$'):
        search(laboratory / "space.yaml", laboratory / "study", storage="postgresql+psycopg2://me@127.0.0.1/db")

    assert not (laboratory / "study").exists()
    assert issubclass(MissingExtra, EvomergeError)
    refuse_url("sqlite://")
