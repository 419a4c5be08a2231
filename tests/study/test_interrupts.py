"""Ctrl-C waits for the end of a step, and is not forgotten."""

import os
import signal
import threading

import optuna
import pytest

from evomerge.study.interrupts import uninterrupted
from evomerge.study.journal import Journal


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def default_handler():
    """A test run in the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_heard_after_the_block_and_once():
    done = []

    def step():
        with uninterrupted():
            ctrl_c()
            ctrl_c()
            with uninterrupted():
                ctrl_c()
            done.append("the whole block")

    with pytest.raises(KeyboardInterrupt):
        step()

    assert done == ["the whole block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


def test_without_an_interrupt_nothing_happens_and_other_threads_do_as_they_did():
    done = []

    def step():
        with uninterrupted():
            done.append(1)

    step()
    other = threading.Thread(target=step)
    other.start()
    other.join()

    assert done == [1, 1]


def test_an_interrupt_inside_the_lock_of_the_journal_leaves_the_trial_in_it(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.log", [optuna.study.StudyDirection.MAXIMIZE])
    symlink = os.symlink

    def held(*names):
        symlink(*names)
        ctrl_c()  # the lock is taken, and nothing is written yet

    monkeypatch.setattr(os, "symlink", held)
    with pytest.raises(KeyboardInterrupt):
        journal.append(optuna.trial.create_trial(value=1.0))
    monkeypatch.undo()

    assert [trial.value for trial in Journal(tmp_path / "journal.log", journal._study.directions).trials()] == [1.0]
