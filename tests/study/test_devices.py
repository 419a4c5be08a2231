"""Devices are shared out among workers: each engine has its own, and none is given twice."""

import multiprocessing
import os
from functools import partial
from itertools import chain

import pytest

from evomerge.errors import ScoringError
from evomerge.scoring import ScoringConfig
from evomerge.study.devices import VISIBLE, Seat, describe, gpus, seats
from evomerge.study.executor import Job, Pool, Result

VLLM = ScoringConfig(scorer="vllm")
EIGHT = [str(i) for i in range(8)]


def ranked(tensor: int, pipeline: int = 1) -> ScoringConfig:
    return ScoringConfig(scorer="vllm", engine={"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline})


@pytest.mark.parametrize("scoring", [VLLM, ranked(2), ranked(1, 2), ranked(2, 2), ranked(4, 2), ranked(3)])
def test_every_engine_has_as_many_devices_as_ranks_and_none_is_given_twice(scoring):
    taken = [seat for seat in seats(scoring, devices=EIGHT) if seat.devices]
    given = list(chain(*(seat.devices for seat in taken)))

    assert len(given) == len(set(given))
    assert all(len(seat.devices) == scoring.ranks == seat.ranks for seat in taken)
    assert len(taken) == 8 // scoring.ranks or scoring.ranks == 8  # one worker sees all there are


def test_names_of_devices_are_passed_on_as_they_are():
    assert [seat.devices for seat in seats(VLLM, devices=["GPU-af", "GPU-07"])] == [("GPU-af",), ("GPU-07",)]


def test_fewer_workers_leave_devices_idle():
    assert [seat.devices for seat in seats(ranked(2), 2, EIGHT)] == [("0", "1"), ("2", "3")]


def test_two_engines_do_not_share_a_device():
    with pytest.raises(ScoringError, match="--workers 5: 8 GPUs hold 4 engines of 2 each, no GPU holds two; leave --workers out"):
        seats(ranked(2), 5, EIGHT)


def test_more_ranks_than_devices_are_refused():
    with pytest.raises(ScoringError, match="16 ranks need 16 GPUs, 8 are here; lower tensor_parallel_size"):
        seats(ranked(8, 2), devices=EIGHT)


def test_live_modules_share_devices_evenly():
    assert [seat.devices for seat in seats(ScoringConfig(), 5, EIGHT[:2])] == [("0",), ("1",), ("0",), ("1",), ("0",)]


def test_a_device_named_in_the_file_is_left_to_the_file():
    assert seats(ScoringConfig(device="cuda:1"), 2, EIGHT) == [Seat(), Seat()]


def test_without_gpus_ranks_share_the_cores(monkeypatch):
    monkeypatch.setattr("evomerge.study.devices._cores", lambda: 6)

    assert [len(seats(scoring, devices=[])) for scoring in (VLLM, ranked(2), ranked(4, 2))] == [6, 3, 1]
    assert seats(ranked(2), 3, []) == [Seat(ranks=2)] * 3


def test_devices_hidden_from_this_process_are_not_given_away(monkeypatch):
    monkeypatch.setenv(VISIBLE, "GPU-af,5,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)

    assert gpus() == ["GPU-af", "5"]


def test_the_outlook_says_who_has_what():
    assert describe(ranked(2), seats(ranked(2), devices=EIGHT[:4])) == "2 workers, each an engine of 2 ranks, on GPUs 0,1 | 2,3"
    assert describe(ScoringConfig(), [Seat(("0",)), Seat(("1",))]) == "2 workers, on GPUs 0 | 1"


class Seeing:
    """Tells what its process sees."""

    def evaluate(self, job: Job) -> Result:
        return Result(error=os.environ.get(VISIBLE, "all"))

    def close(self) -> None: ...


def asking():
    return (yield Job(None, {})).error


@pytest.mark.parametrize("before", [None, "3,4,5"])
def test_each_worker_sees_its_own_devices_and_this_process_all(before, monkeypatch):
    monkeypatch.setenv(VISIBLE, before) if before else monkeypatch.delenv(VISIBLE, raising=False)
    pool = Pool(partial(Seeing), 2, [Seat(("3",)), Seat(("4", "5"), ranks=2)])
    seen = set(pool.run(iter([asking(), asking()])))
    pool.close()

    assert seen == {"3", "4,5"}
    assert os.environ.get(VISIBLE) == before


class Parent:
    """Has a child of its own, as an engine of several ranks has."""

    def evaluate(self, job: Job) -> Result:
        child = multiprocessing.get_context("spawn").Process(target=os.getpid)
        child.start()
        child.join()
        return Result(error=f"child ended with {child.exitcode}")

    def close(self) -> None: ...


def test_a_worker_whose_engine_has_ranks_may_have_children():
    pool = Pool(Parent, 1, [Seat(ranks=2)])
    (said,) = pool.run(iter([asking()]))
    pool.close()

    assert said == "child ended with 0"
    assert not pool.lanes[0].process.is_alive()
