"""Jobs in, results out; a worker that dies costs a restart and no trial."""

import time
from functools import partial

import pytest

from evomerge.errors import EvomergeError
from evomerge.study.executor import InProcess, Job, Pool, make_executor
from tests.study.workers import Answering, Broken


def life(name, *tasks):
    """Asks one job after the other, and returns its name with the results."""
    results = []
    for task in tasks:
        results += [(yield Job(None, {task: [1, 2, 3]}))]
    return name, results


@pytest.fixture(params=[1, 2], ids=["in process", "pool"])
def executor(request, tmp_path):
    made = make_executor(partial(Answering, tmp_path), request.param)
    yield made
    made.close()


def test_every_life_gets_its_own_results_in_order(executor):
    ended = dict(executor.run(life(str(i), f"a{i}", f"b{i}") for i in range(5)))

    assert {name: [result.scores.tasks[0] for result in results] for name, results in ended.items()} == {
        str(i): [f"a{i}", f"b{i}"] for i in range(5)
    }


def test_lives_are_begun_only_when_a_lane_is_free(executor):
    begun = []

    def lives():
        for i in range(6):
            begun.append(i)
            yield life(i, "sleep")

    for count, _ in enumerate(executor.run(lives()), 1):
        assert len(begun) <= count + executor.workers


def test_a_device_lost_in_the_middle_costs_a_process_and_no_candidate(tmp_path, caplog):
    pool = Pool(partial(Answering, tmp_path), 1)
    try:
        ((_, (before, lost, after)),) = pool.run(iter([life("x", "a", "lose-once", "b")]))
    finally:
        pool.close()

    assert [len(result.scores) for result in (before, lost, after)] == [3, 3, 3]
    assert lost.lost == ("CUDA error: an illegal memory access was encountered",)
    assert before.lost == after.lost == ()
    assert len(list(tmp_path.glob("worker-*"))) == 2
    assert ["its candidate is run again" in message for message in caplog.messages] == [True]


def test_a_device_lost_by_the_only_process_ends_it_with_one_line(tmp_path):
    executor = InProcess(partial(Answering, tmp_path))

    with pytest.raises(EvomergeError, match=r"illegal memory access was encountered; .* --resume"):
        list(executor.run(iter([life("x", "lose-once")])))


def test_an_exception_in_a_job_is_its_result(executor):
    ((_, (result,)),) = executor.run(iter([life("x", "raise")]))

    assert result.error == "ZeroDivisionError: by nought (workers.py:26)"


def test_bad_input_found_by_a_job_is_said_in_its_own_words(executor):
    ((_, (result, after)),) = executor.run(iter([life("x", "refuse", "a")]))

    assert result.error == "base: has no tensors"
    assert after.error is None


def test_a_life_without_a_job_ends_at_once(executor):
    assert list(executor.run(iter([life("x"), life("y")]))) == [("x", []), ("y", [])]


def test_a_worker_that_dies_loses_no_job(tmp_path):
    pool = Pool(partial(Answering, tmp_path), 2)
    ended = dict(pool.run(iter([life("x", "a", "die-once", "b"), life("y", "a", "sleep", "b")])))
    pool.close()

    assert [len(result.scores) for result in ended["x"]] == [3, 3, 3]
    assert [len(result.scores) for result in ended["y"]] == [3, 3, 3]
    assert (tmp_path / "died").exists()


def test_a_worker_that_dies_in_the_middle_of_its_answer_loses_no_job(tmp_path):
    def long(name):
        return name, (yield Job(None, {"long": list(range(100_000))}))  # more than a pipe holds

    pool = Pool(partial(Answering, tmp_path), 2)
    lives = pool.run(iter([life("x", "a"), long("y")]))
    next(lives)
    (lane,) = [lane for lane in pool.lanes if lane.life is not None]
    assert lane.pipe.poll(60)  # it has begun to answer, and nobody reads
    time.sleep(0.5)  # until the pipe is full
    lane.process.kill()
    ((_, result),) = lives
    pool.close()

    assert len(result.scores) == 100_000


def test_a_job_that_kills_every_worker_is_given_up_with_the_reason(tmp_path):
    pool = Pool(partial(Answering, tmp_path), 1)
    ((_, (result, after)),) = pool.run(iter([life("x", "die", "a")]))
    pool.close()

    assert result.error == "its worker died 2 times (last exit code 9)"
    assert len(after.scores) == 3


def test_a_pool_uses_all_its_processes(tmp_path):
    pool = Pool(partial(Answering, tmp_path), 2)
    list(pool.run(life(i, "sleep") for i in range(4)))
    pool.close()

    assert len(list(tmp_path.glob("worker-*"))) == 2


@pytest.mark.parametrize("executor", [InProcess, partial(Pool, workers=1)])
def test_a_worker_that_cannot_be_made_stops_the_run_with_its_reason(executor):
    with pytest.raises(EvomergeError, match="base: has no tensors"):
        list(executor(Broken).run(iter([life("x", "a")])))


def test_workers_are_closed_with_the_executor(executor, tmp_path):
    list(executor.run(life(str(i), "sleep") for i in range(4)))
    executor.close()

    worked = {path.name.removeprefix("worker-") for path in tmp_path.glob("worker-*")}
    assert {path.name.removeprefix("closed-") for path in tmp_path.glob("closed-*")} == worked
    assert len(worked) == executor.workers
