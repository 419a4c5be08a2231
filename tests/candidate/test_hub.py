"""Models of the hub by their id: from its cache with its links to blobs; without a network one line that says how."""

import shutil
import socket

import huggingface_hub
import pytest
import torch

from evomerge.candidate import hub
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.merge import dry_run
from evomerge.errors import CheckpointError

REVISION = "0123456789abcdef0123456789abcdef01234567"
LINEAR = {"method": "linear", "weight": 0.5, "match": "*"}


@pytest.fixture
def cache(family, tmp_path, monkeypatch):
    """A hub cache that holds lab/base, laid out as the hub's client lays it: a snapshot of links to blobs."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--lab--base"
    snapshot, blobs = repository / "snapshots" / REVISION, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    for i, file in enumerate(sorted((family / "base").iterdir())):
        shutil.copy(file, blobs / f"{i:040}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:040}")
    return snapshot


@pytest.mark.parametrize("spelled", ["lab/base", "lab/base@main", f"lab/base@{REVISION}"])
def test_a_model_in_the_cache_is_found_by_its_id(spelled, cache, family, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    found = Checkpoint.open(spelled)

    assert found.path == cache
    assert torch.equal(found.read("lm_head.weight"), Checkpoint.open(family / "base").read("lm_head.weight"))
    assert found.tokenizer == Checkpoint.open(family / "base").tokenizer


def test_what_lies_here_is_no_id_of_the_hub(cache, family, monkeypatch, tmp_path):
    shutil.copytree(family / "math", tmp_path / "lab" / "base")
    monkeypatch.chdir(tmp_path)

    assert str(Checkpoint.open("lab/base").path) == "lab/base"


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_one_line_says_how(offline, cache, make, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open("lab/other", "sources.code")

    said = str(caught.value)
    assert said.startswith("sources.code: lab/other: neither a directory here nor in the hub's cache, and the hub was not")
    assert said.endswith("with a network: hf download lab/other --local-dir DIR, and name DIR; or correct the path")
    assert "\n" not in said


def test_no_pickle_and_no_code_is_asked_for(cache, monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **rest: asked.update(rest) or str(cache))
    monkeypatch.chdir(tmp_path)

    hub.snapshot("lab/base")

    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith((".bin", ".py", ".pt", "*"))]


@pytest.mark.parametrize(
    ("name", "to", "words"),
    [
        ("model.safetensors", "{outside}/model.safetensors", "leads out of its directory, to .*; copy the file into it"),
        ("config.json", "{outside}/config.json", "leads out of its directory"),
        ("tokenizer.json", "{outside}/tokenizer.json", "leads out of its directory"),
        ("config.json", "config.json", "is a link that leads back to itself; download"),
        ("model.safetensors", "missing.safetensors", "is a link to missing.safetensors, which is missing; download"),
    ],
)
def test_a_link_out_of_the_directory_is_refused(name, to, words, make, family, tmp_path):
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    shutil.copytree(family / "math", tmp_path / "outside")
    (tmp_path / "math" / name).unlink()
    (tmp_path / "math" / name).symlink_to(to.format(outside=tmp_path / "outside"))

    with pytest.raises(CheckpointError, match=rf"sources.math: {tmp_path}/math/{name}: {words}") as caught:
        dry_run(make(root=tmp_path, rules=[LINEAR]))
    assert "\n" not in str(caught.value)


def test_a_link_within_the_directory_is_followed(make, family, tmp_path):
    shutil.copytree(family, tmp_path, dirs_exist_ok=True)
    (tmp_path / "math" / "model.safetensors").rename(tmp_path / "math" / "weights")
    (tmp_path / "math" / "model.safetensors").symlink_to("weights")

    assert dry_run(make(root=tmp_path, rules=[LINEAR])).warnings == ()


def test_a_snapshot_leads_to_the_blobs_of_its_own_repository_only(cache, family):
    (cache.parents[2] / "models--lab--secret" / "blobs").mkdir(parents=True)
    shutil.copy(family / "math" / "model.safetensors", cache.parents[2] / "models--lab--secret" / "blobs" / "0")
    (cache / "model.safetensors").unlink()
    (cache / "model.safetensors").symlink_to("../../../models--lab--secret/blobs/0")

    with pytest.raises(CheckpointError, match="leads out of its directory"):
        Checkpoint.open(cache)


def test_an_index_that_names_a_file_elsewhere_is_refused(family, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(family / "base", folder)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}')

    with pytest.raises(CheckpointError, match=r"elsewhere.safetensors: leads out of its directory"):
        Checkpoint.open(folder)
