"""What crosses to the ranks of an engine is a recipe or a place on a disk, never the weights; each rank makes the same of it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from evomerge.candidate.stored import from_disk
from evomerge.candidate.stream import Candidate, Sources, materialize
from evomerge.document import Place
from evomerge.errors import CheckpointError
from evomerge.recipe import Recipe, locate
from evomerge.scoring.vllm_crossing import Arrivals, crossing

RANKS = 2
CPU = torch.device("cpu")


def recipe(base: str = "zoo:models/base") -> Recipe:
    data = {
        "base": base,
        "sources": {"sort": "zoo:models/sort", "flip": "zoo:models/flip"},
        "rules": [
            {"match": "*self_attn*", "method": "ties", "density": {"sort": 0.3, "flip": 0.7}, "weight": [0.2, 0.9]},
            {"match": "*mlp*", "method": "dare_ties", "drop_rate": 0.5, "weight": 1 / 3},
            {"match": "*", "method": "linear", "weight": {"base": 0.1, "sort": 0.7, "flip": 0.2}},
        ],
        "context": {"rope_type": "yarn", "factor": 2.5},
        "seed": 7,
    }
    return Recipe.from_data(data, Place("test"))


def merged() -> Candidate:
    return materialize(recipe(), Sources())


def stacked() -> Candidate:
    data = {
        "base": "zoo:models/base",
        "sources": {"sort": "zoo:models/sort"},
        "slices": [{"source": "base", "layers": [0, 4]}, {"source": "sort", "layers": [2, 6]}],
    }
    return materialize(Recipe.from_data(data, Place("test")), Sources())


def distilled() -> Candidate:
    whole = merged()
    return Candidate.of(whole.config, {name: tensor * 1.01 for name, tensor in whole.weights}, "distilled")


def same(ours, theirs) -> bool:
    ours, theirs = dict(ours), dict(theirs)
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "make", [merged, distilled, lambda: from_disk("zoo:models/tied-sort")], ids=["merged", "healed", "stored"]
)
def test_every_rank_makes_the_same_weights_of_a_few_bytes(make):
    candidate = make()

    with crossing(candidate, RANKS) as parcel:
        sent = pickle.dumps(parcel)
        found = [list(Arrivals(CPU).unpack(pickle.loads(sent))) for _ in range(RANKS)]

    assert len(sent) < 5000
    assert all(same(rank, candidate.weights) for rank in found)


def test_of_a_merge_only_the_recipe_crosses():
    with crossing(merged(), RANKS) as parcel:
        assert parcel.keys() == {"recipe", "key"}


def test_what_was_distilled_crosses_in_memory_and_leaves_nothing_there():
    with crossing(distilled(), RANKS) as parcel:
        folder = Path(parcel["folder"])

        assert Path("/dev/shm") in folder.parents or not Path("/dev/shm").is_dir()
        assert (folder / "model.safetensors").exists()
    assert not folder.parent.exists()


def test_within_one_process_the_stream_itself_is_handed_over():
    with crossing(merged(), 1) as parcel:
        assert same(Arrivals(CPU).unpack(parcel), merged().weights)


def test_a_watched_stream_is_watched_once_however_many_ranks_read_it():
    read = []

    class Watched:
        def __iter__(self):
            for name, tensor in merged().weights:
                read.append(name)
                yield name, tensor

    plain = merged()
    with crossing(Candidate(plain.config, Watched(), plain.key, plain.manifest), RANKS) as parcel:
        for _ in range(RANKS):
            list(Arrivals(CPU).unpack(parcel))

    assert sorted(read) == sorted(plain.manifest)


def test_sources_stay_with_a_rank_from_candidate_to_candidate():
    rank = Arrivals(CPU)
    with crossing(merged(), RANKS) as parcel:
        list(rank.unpack(parcel))
        kept = dict(rank.sources.shelf.tensors)
        list(rank.unpack(parcel))

    assert kept
    assert all(rank.sources.shelf.tensors[place] is tensor for place, tensor in kept.items())


def test_sources_that_changed_between_two_processes_are_refused(tmp_path):
    shutil.copytree(locate("zoo:models/base"), tmp_path / "base")
    candidate = materialize(recipe(str(tmp_path / "base")), Sources())
    config = tmp_path / "base/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 1e-4}))

    with crossing(candidate, RANKS) as parcel, pytest.raises(CheckpointError, match="its sources differ from process to process"):
        list(Arrivals(CPU).unpack(parcel))
