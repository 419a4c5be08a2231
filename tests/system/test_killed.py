"""`kill -9`, then the same command again: nothing finished is lost or done twice, and all ends as if nothing had happened."""

import contextlib
import json
import os
import signal
import time
from collections import defaultdict
from functools import partial

from evomerge.study.search import search
from tests.system.searches import ROOT, arguments, dies_at, finished, forked, remains, started, trials, until

LIFE = 6  # calls of the scorer for one candidate at most: three tasks on two rungs
PHASES = ("parents", "baselines", "trials", "select", "sealed")


def marks(study):
    """Which files hold the trials that the journal counts: a trial that is run again is written anew."""
    folders = [study / "trials" / user["folder"] for _, _, _, _, user, _ in trials(study)]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for folder in folders for file in folder.iterdir()}


def follows(whole, before, calls):
    """Where in the whole run these calls end, if they go on from `before` in its order, one candidate repeated at most."""
    for begin in range(before, max(before - LIFE, 0) - 1, -1):
        if whole[begin : begin + len(calls)] == calls:
            return begin + len(calls)
    raise AssertionError(f"{calls[:3]} after {before} of {len(whole)} calls")


def test_killed_before_any_kind_of_change_on_disk(laboratory, whole, tmp_path, calls, chance):
    expected, places = remains(whole.study), defaultdict(int)
    for step in whole.steps:
        if "report." not in step:  # comes after the search
            places[step] += 1

    assert len(places) > 50
    for number, (step, count) in enumerate(places.items()):
        study = tmp_path / str(number) / "study"  # the name stands in the ledger
        calls.unlink(missing_ok=True)
        run = partial(search, laboratory / "space.yaml", study, workers=1, resume=True)
        killed = forked(run, dies_at(study, step, chance.randint(1, count)))
        assert killed.returncode == -signal.SIGKILL, step
        reached, counted = (len(calls.read_text().splitlines()) if calls.exists() else 0), marks(study)

        done = forked(run)

        assert done.returncode == 0, (step, done.stderr)
        assert remains(study) == expected, step
        assert counted.items() <= marks(study).items(), step
        again = calls.read_text().splitlines() if calls.exists() else []
        assert again[:reached] == whole.calls[:reached], step
        assert follows(whole.calls, reached, again[reached:]) == len(whole.calls), step


def kill(running, moment, after):
    """Let a search come to a moment, and some time more; then kill all its processes."""
    until(running, moment)
    time.sleep(after)
    with contextlib.suppress(ProcessLookupError):  # it was quicker
        os.killpg(running.pid, signal.SIGKILL)
    running.communicate()


def test_the_command_killed_again_and_again_at_random_moments(laboratory, whole, tmp_path, calls, chance):
    study, counted = tmp_path / "study", {}
    reached = seen = 0
    for phase in PHASES:
        running = started(arguments(laboratory, study))
        kill(running, phase, chance.uniform(0, 0.15))
        lines = calls.read_text().splitlines() if calls.exists() else []
        reached, seen = follows(whole.calls, reached, lines[seen:]), len(lines)
        assert counted.items() <= marks(study).items()
        counted = marks(study)

    done = finished(arguments(laboratory, study))

    assert done.returncode == 0, done.stderr
    assert remains(study) == remains(whole.study)
    assert counted.items() <= marks(study).items()


def test_a_search_over_real_models_killed_twice_ends_as_if_nothing_had_happened(tmp_path, chance):
    whole, study = tmp_path / "whole/study", tmp_path / "study"

    def words(out):
        return arguments(ROOT / "tests/system", out, space="zoo.yaml")

    undisturbed = finished(words(whole))
    for phase in ("trials", "sealed"):
        kill(started(words(study)), phase, chance.uniform(0, 1))
    done = finished(words(study))

    assert (done.returncode, undisturbed.returncode) == (3, 3), done.stderr
    assert len(trials(study)) == 5
    assert remains(study) == remains(whole)


def test_a_controller_killed_takes_its_pool_with_it_and_loses_no_trial(laboratory, tmp_path):
    words = arguments(laboratory, tmp_path / "study", "--trials", "60", workers=2)
    running = started(words)
    until(running, "0005")
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()  # ends when the workers, who hold the other end of the pipe, have gone
    counted, finished_then = marks(tmp_path / "study"), trials(tmp_path / "study")

    done = finished(words)

    assert done.returncode == 0, done.stderr
    assert finished_then
    assert trials(tmp_path / "study")[: len(finished_then)] == finished_then
    assert counted.items() <= marks(tmp_path / "study").items()
    ended = [user["folder"] for *_, user, _ in trials(tmp_path / "study")]
    assert len({name[:4] for name in ended}) == len(ended) == 60
    assert sorted(ended) == sorted(folder.name for folder in (tmp_path / "study/trials").iterdir())


def test_a_study_killed_while_its_second_certificate_was_written_does_not_end_with_the_first(laboratory, tmp_path):
    study = tmp_path / "study"
    more = arguments(laboratory, study, "--trials", "25", "--reopen")
    forked(arguments(laboratory, study, "--trials", "3"))
    killed = forked(more, dies_at(study, "os.rename certificate.json.draft", 1))
    before = json.loads((study / "certificate.json").read_text())["trials"]
    done = forked(more)

    assert (killed.returncode, before) == (-signal.SIGKILL, 3)
    assert done.returncode == 0, done.stderr
    assert json.loads((study / "certificate.json").read_text())["trials"] == 25
