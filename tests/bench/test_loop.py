"""Workers in virtual time: lanes fill as they would, and what the controller takes is seen as workers that wait."""

import time

import pytest

from evomerge.bench.loop import simulate
from evomerge.bench.simulated import Simulated
from evomerge.study.executor import Job, Result


class Instant:
    def evaluate(self, job):
        return Result()

    def close(self): ...


def life(name, *seconds):
    for each in seconds:
        yield Job(None, {"task": range(each)})
    return name


def simulated(workers):
    return Simulated(Instant(), workers, lambda job: float(len(job.documents["task"])))


def test_lanes_work_side_by_side():
    executor = simulated(4)

    assert sorted(executor.run(life(i, 6, 4) for i in range(8))) == list(range(8))
    assert executor.phases[0].lives == 8
    assert executor.phases[0].seconds == pytest.approx(20, abs=0.5)


def test_a_slow_candidate_holds_nobody():
    executor = simulated(2)

    ended = list(executor.run(life(i, *seconds) for i, seconds in enumerate([(100,), *[(5, 5)] * 9])))

    assert ended == [*range(1, 10), 0]
    assert executor.phases[0].seconds == pytest.approx(100, abs=0.5)


def test_a_slow_controller_shows_as_idle_workers():
    executor = simulated(2)
    for _ in executor.run(life(i, 1) for i in range(6)):
        time.sleep(0.2)

    assert executor.phases[0].controller >= 1.2
    assert executor.phases[0].idle >= 0.8
    assert executor.phases[0].seconds >= 3


def test_a_whole_study_is_simulated_with_the_real_loop():
    phase = simulate("cmaes", 12, 4, 8)

    assert phase.lives == 8
    assert phase.processor > 0
    assert 0 <= phase.idle < 4 * phase.seconds
