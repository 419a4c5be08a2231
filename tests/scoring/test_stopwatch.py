"""Seconds are counted once, under the innermost name."""

import time

import pytest

from evomerge.scoring.stopwatch import Stopwatch


def test_what_runs_within_another_has_its_seconds_for_itself():
    clock = Stopwatch()
    begun = time.perf_counter()
    with clock("score"):
        time.sleep(0.02)
        with clock("engine"):
            time.sleep(0.05)
    whole = time.perf_counter() - begun
    found = clock.take()

    assert found["engine"] >= 0.05
    assert 0.02 <= found["score"] <= whole - 0.05
    assert sum(found.values()) <= whole


def test_seconds_are_taken_once_and_an_error_ends_their_count():
    clock = Stopwatch()
    with pytest.raises(OSError, match="gone"), clock("swap"):
        raise OSError("gone")
    first = clock.take()
    time.sleep(0.01)

    assert list(first) == ["swap"]
    assert clock.take() == {}


def test_seconds_may_be_taken_while_they_run():
    clock = Stopwatch()
    with clock("engine"):
        time.sleep(0.01)
        first = clock.take()
        time.sleep(0.01)

    assert first["engine"] >= 0.01
    assert clock.take()["engine"] >= 0.01
