"""Sources that the device does not hold: where they wait, what is said, and that no byte of a candidate changes."""

import logging
import threading

import pytest
import torch

from evomerge.candidate.conveyor import Conveyor
from evomerge.candidate.placement import Load, Room, Shelf, free_memory, gigabytes
from evomerge.candidate.stream import Sources, materialize

CPU = torch.device("cpu")
METHODS = {
    "ties": {"weight": 0.5, "density": 0.3, "variant": "mergekit"},
    "ties of the paper": {"method": "ties", "weight": 0.5, "density": 0.3, "variant": "paper"},
    "della": {"weight": 0.4, "density": 0.5},
    "model_stock": {"filter_wise": True},
    "dare_ties": {"weight": 0.5, "drop_rate": 0.5},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("room", [Room(60_000, 50_000), Room(0, 0), Room(0, 1 << 30)], ids=["mixed", "disk", "pinned"])
def test_candidates_have_the_same_bytes_wherever_their_sources_wait(method, room, make, caplog):
    recipe = make(**{"method": method, **METHODS[method]})
    usual = dict(materialize(recipe, Sources(resident=True)).weights)
    sources = Sources(resident=True, room=Room(room.device, room.host))

    first, second = (dict(materialize(recipe, sources).weights) for _ in range(2))  # from the files, and from what is known

    assert sources.shelf.streams
    assert all(torch.equal(usual[name], first[name]) and torch.equal(usual[name], second[name]) for name in usual)
    assert len([record for record in caplog.records if "sources need" in record.message]) == 1


def test_what_is_needed_and_free_and_what_happens_instead_is_said(caplog):
    shelf = Shelf(CPU, Room(70, 50))

    with caplog.at_level(logging.WARNING, "evomerge"):
        shelf.assign([Load({("base", str(i)): 20, ("math", str(i)): 10}) for i in range(4)])

    assert [shelf.places["base", str(i)] for i in range(4)] == ["device", "device", "pinned", "disk"]
    assert caplog.messages == [
        "sources need 120 bytes on cpu, 70 bytes may be taken: 60 bytes stay there, 30 bytes wait in pinned memory and are copied"
        " while what came before is merged, 30 bytes are read from the disk anew for each candidate; candidates take longer,"
        " their bytes are the same"
    ]


def test_a_tensor_that_has_a_place_keeps_it_and_is_counted_once(caplog):
    shelf = Shelf(CPU, Room(100))
    shelf.assign([Load({("base", "a"): 40, ("math", "a"): 40})])

    shelf.assign([Load({("base", "a"): 40, ("code", "a"): 20})])

    assert shelf.places == {("base", "a"): "device", ("math", "a"): "device", ("code", "a"): "device"}
    assert shelf.room.device == 0
    assert not caplog.messages


def test_what_is_kept_beside_sources_takes_room_too():
    shelf = Shelf(CPU, Room(100))

    shelf.assign([Load({("base", "a"): 60}, beside=41)])

    assert shelf.places == {("base", "a"): "disk"}


def test_the_next_batch_is_fetched_while_one_is_merged():
    fetched = {batch: threading.Event() for batch in range(5)}

    def fetch(batch):
        fetched[batch].set()
        return {("base", "a"): torch.tensor([batch])}

    merged = []
    for batch, tensors in Conveyor(CPU, fetch).run(range(5)):
        assert batch == 4 or fetched[batch + 1].wait(60)
        assert not any(event.is_set() for event in list(fetched.values())[batch + 2 :])  # no more than two are under way
        merged.append(int(tensors["base", "a"]))

    assert merged == list(range(5))


def test_what_cannot_be_fetched_is_raised_where_it_is_merged():
    def fetch(batch):
        raise OSError(f"no batch {batch}")

    with pytest.raises(OSError, match="no batch 0"):
        list(Conveyor(CPU, fetch).run(range(3)))


def test_free_memory_is_that_of_this_machine():
    assert 1 << 20 < free_memory() < 1 << 50


@pytest.mark.parametrize(("size", "said"), [(70e9, "70 GB"), (1.44e9, "1.44 GB"), (3_200_000, "3.2 MB"), (999, "999 bytes")])
def test_sizes_are_said_as_a_reader_wants_them(size, said):
    assert gigabytes(int(size)) == said
