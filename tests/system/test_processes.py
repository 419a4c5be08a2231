"""A worker that dies, a second process, Ctrl-C: a search ends with every trial, or says in one line why it does not."""

import json
import os
import signal
import time

import pytest

from tests.system.searches import arguments, finished, forked, remains, started, trials, until

SLOW = """
from pathlib import Path
_counted = score

def score(weights, config, task, documents):
    \"\"\"As above, in a while, and with a file under the process' number as long as it takes.\"\"\"
    mark = Path(os.environ["CALLS"] + f".{os.getpid()}")
    mark.touch()
    time.sleep(0.02)
    result = _counted(weights, config, task, documents)
    mark.unlink()
    return result
"""


@pytest.fixture
def slow(laboratory):
    """The laboratory with a scorer of which one can see that it is at work."""
    scorer = laboratory / "scorer.py"
    before = scorer.read_text()
    scorer.write_text(f"import time\n{before}{SLOW}")
    yield laboratory
    scorer.write_text(before)


def scoring(calls, running):
    """The number of a process that scores at this moment and is not the one that was started."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for mark in calls.parent.glob(f"{calls.name}.*"):
            if (process := int(mark.suffix[1:])) != running.pid:
                return process
        time.sleep(0.001)
    raise TimeoutError("no worker scores")


def test_workers_killed_while_they_score_cost_no_trial(slow, tmp_path, calls):
    running = started(arguments(slow, tmp_path / "study", "--trials", "40", workers=2))
    for phase in ("baselines", "trials"):
        until(running, phase)
        victim = scoring(calls, running)
        os.kill(victim, signal.SIGKILL)
        (calls.parent / f"{calls.name}.{victim}").unlink(missing_ok=True)
    _, said = running.communicate(timeout=300)

    assert running.returncode in (0, 3, 4, 5), said
    ended = trials(tmp_path / "study")
    assert [number for number, *_ in ended] == list(range(40))
    folders = {user["folder"] for *_, user, _ in ended}
    assert folders == {folder.name for folder in (tmp_path / "study/trials").iterdir()}
    reasons = [json.loads((tmp_path / "study/trials" / folder / "verdict.json").read_text())["reason"] for folder in folders]
    assert not [reason for reason in reasons if "died" in reason]


@pytest.mark.parametrize("phase", ["parents", "baselines", "trials", "select", "sealed"])
def test_ctrl_c_at_any_time_writes_a_report_and_the_same_command_goes_on(laboratory, whole, tmp_path, phase):
    study = tmp_path / "study"
    running = started(arguments(laboratory, study))
    until(running, phase)
    os.killpg(running.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to all that run in it
    shown, said = running.communicate(timeout=300)

    assert running.returncode == 130, said
    assert f"go on with: evomerge search {laboratory / 'space.yaml'} --out {study} --resume" in said
    assert "Traceback" not in said
    assert "verdict: not finished" in shown
    assert "not finished" in (study / "report.html").read_text()

    done = forked(arguments(laboratory, study))

    assert done.returncode == 0, done.stderr
    assert remains(study) == remains(whole.study)


def test_ctrl_c_reaches_the_workers_of_a_pool_without_a_word_of_theirs(laboratory, tmp_path):
    running = started(arguments(laboratory, tmp_path / "study", workers=2))
    until(running, "trials")
    os.killpg(running.pid, signal.SIGINT)
    shown, said = running.communicate(timeout=300)

    assert running.returncode == 130, said
    assert "Traceback" not in said
    assert "verdict: not finished" in shown


def test_a_second_process_on_a_running_study_is_refused_by_name_and_disturbs_nothing(laboratory, whole, tmp_path):
    study = tmp_path / "study"
    running = started(arguments(laboratory, study))
    try:
        until(running, "baselines")
        os.kill(running.pid, signal.SIGSTOP)  # it holds the study for as long as we look
        second = finished(arguments(laboratory, study))
    finally:
        os.kill(running.pid, signal.SIGCONT)
        running.communicate(timeout=300)

    assert second.returncode == 2
    assert second.stderr == (f"error: {study}: process {running.pid} is working on this study; wait for it, or stop it first\n")
    assert running.returncode == 0
    assert remains(study) == remains(whole.study)
