"""Trials in a real PostgreSQL server that is killed and comes back: each of the journal's once, and nothing waits for it."""

import os
import signal

import optuna
import pytest

from tests.system.searches import arguments, finished, started, trials, until
from tests.system.server import Server, programs
from tests.system.test_processes import slow  # noqa: F401 - a fixture

pytest.importorskip("psycopg2", reason='needs psycopg2: pip install "evomerge[postgresql]"')
pytestmark = pytest.mark.skipif(programs() is None, reason="needs PostgreSQL: apt-get install postgresql")


@pytest.fixture
def server():
    running = Server()
    yield running
    running.end()


def stored(server):
    (name,) = optuna.study.get_all_study_names(server.url)
    study = optuna.load_study(study_name=name, storage=server.url)
    return [(t.number, t.params, t.values, t.state, t.user_attrs) for t in study.trials]


def recorded(study):
    return [found[:5] for found in trials(study)]


def test_a_server_killed_and_back_in_the_middle_has_every_trial_once(slow, server, tmp_path):  # noqa: F811
    running = started(arguments(slow, tmp_path / "study", "--trials", "90", "--storage", server.url))
    until(running, "0005")
    server.kill()
    heard = until(running, text="does not answer")  # Optuna asks five times within eight seconds before it gives up
    server.start()
    until(running, text="is back")
    _, said = running.communicate(timeout=300)

    assert any('"scored"' in line for line in heard), "the search has waited"
    assert running.returncode in (0, 3, 4, 5), said
    assert len(recorded(tmp_path / "study")) == 90
    assert stored(server) == recorded(tmp_path / "study")


def test_a_killed_controller_and_a_server_that_is_away_at_the_end_are_made_up_for(slow, server, tmp_path):  # noqa: F811
    words = arguments(slow, tmp_path / "study", "--trials", "30", "--storage", server.url)
    running = started(words)
    until(running, "0005")
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    running = started(words)
    until(running, "0020")
    server.kill()
    _, said = running.communicate(timeout=300)
    server.start()
    ended = running.returncode
    again = finished(words)

    assert ended in (0, 3, 4, 5), said
    assert "trials are not in" in said
    assert again.returncode == ended, again.stderr
    assert stored(server) == recorded(tmp_path / "study")


def test_a_server_that_does_not_answer_at_the_beginning_is_refused_in_one_line(slow, server, tmp_path):  # noqa: F811
    server.kill()
    done = finished(arguments(slow, tmp_path / "study", "--storage", server.url))

    assert done.returncode == 2
    assert "cannot be opened" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "study").exists()
