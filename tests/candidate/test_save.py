"""What is written is what safetensors and transformers would write, whole or not at all."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.candidate.checkpoint import Checkpoint, TensorInfo
from evomerge.candidate.merge import merge
from evomerge.candidate.save import save
from evomerge.candidate.stream import Candidate, Sources, materialize
from evomerge.errors import CheckpointError, RecipeError

TIES = {"method": "ties", "weight": {"math": [0.2, 0.8], "code": 0.5}, "density": 0.4}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
          torch.uint8, torch.bool]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_file_is_that_of_safetensors_byte_for_byte(tmp_path):
    torch.manual_seed(0)
    tensors = {f"{'ü' * (i % 2)}t{i:02}.{j}": torch.randn(3, i + 1).to(t) for i, t in enumerate(DTYPES) for j in (10, 9)}
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.zeros(0, 4)
    save(Candidate.of({}, tensors, ""), tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})

    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_the_order_of_the_stream_does_not_matter(tmp_path):
    tensors = {"b": torch.ones(2), "a": torch.zeros(3), "c": torch.ones(1, dtype=torch.float64)}
    one = save(Candidate.of({}, tensors, ""), tmp_path / "one")
    other = save(Candidate.of({}, dict(reversed(tensors.items())), ""), tmp_path / "other")

    assert contents(one) == contents(other)


def test_a_merge_repeated_gives_the_same_bytes(make, tmp_path):
    recipe = make(**TIES, context={"rope_type": "yarn", "factor": 2.0})
    one, other = merge(recipe, tmp_path / "one"), merge(recipe, tmp_path / "other")

    assert contents(one) == contents(other)
    assert set(contents(one)) >= {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


def test_a_merge_in_shards_is_the_merge_in_one_file(make, family, tmp_path):
    candidate = materialize(make(**TIES), Sources())
    whole = load_file(save(candidate, tmp_path / "whole") / "model.safetensors")
    folder = save(candidate, tmp_path / "shards", shard_size=40_000)
    shards, model = Checkpoint.open(folder), AutoModelForCausalLM.from_pretrained(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())

    assert len(list(folder.glob("*.safetensors"))) == 4
    assert all(tensor.equal(shards.read(name)) and tensor.equal(model.state_dict()[name]) for name, tensor in whole.items())
    assert index["metadata"] == {"total_parameters": 66_880, "total_size": 133_760}


def test_the_directory_loads_in_transformers(make, family, tmp_path):
    folder = merge(make(**TIES, context={"rope_type": "yarn", "factor": 2.0}), tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == 128
    assert tokenizer("w3 w4").input_ids == AutoTokenizer.from_pretrained(family / "base")("w3 w4").input_ids
    assert oct(folder.stat().st_mode & 0o777) == oct(0o777 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_card_holds_the_recipe(make, tmp_path):
    recipe = make(**TIES)
    text = (merge(recipe, tmp_path / "model") / "README.md").read_text()

    assert recipe.to_yaml() in text
    assert recipe.sources["math"].model in text


def test_progress_is_told_tensor_by_tensor(make, tmp_path):
    seen: list[tuple[int, int]] = []
    merge(make(**TIES), tmp_path / "model", progress=lambda done, total: seen.append((done, total)))

    assert seen == [(i, 21) for i in range(1, 22)]


def test_an_existing_directory_is_left_alone(make, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/precious").write_text("x")

    with pytest.raises(CheckpointError, match=r"model: exists already; remove it, or give another directory"):
        merge(make(**TIES), tmp_path / "model")
    assert contents(tmp_path / "model") == {"precious": b"x"}


def test_no_room_is_said_with_both_numbers_and_nothing_stays(make, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 500_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)

    with pytest.raises(CheckpointError, match=r"no room on disk: 1.1 MB are needed, 0.5 MB free; free some"):
        merge(make(**TIES), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_in_the_middle_leaves_nothing(make, tmp_path):
    candidate = materialize(make(**TIES), Sources())

    def filling():
        for i, item in enumerate(candidate.weights):
            if i == 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield item

    with pytest.raises(CheckpointError, match=r"model: cannot be written \(No space left on device\); free some room"):
        save(Candidate(candidate.config, filling(), "", candidate.manifest), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_file_too_large_for_the_system_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"model: cannot be written \(File too large\); check the disk"):
            save(Candidate.of({}, {"w": torch.zeros(50_000)}, ""), tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_model_that_is_found_broken_in_the_middle_leaves_nothing(value, make, family, tmp_path):
    shutil.copytree(family, tmp_path / "family")
    tensors = load_file(file := tmp_path / "family/code/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][-1, -1] = value
    save_file(tensors, file)

    with pytest.raises(CheckpointError, match=r"code/model.safetensors: 'model.layers.1.mlp.up_proj.weight' has NaN"):
        merge(make(root=tmp_path / "family", **TIES), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["family"]


def test_an_interrupted_merge_leaves_nothing(make, tmp_path):
    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(make(**TIES), tmp_path / "model", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_merge_is_taken_over_and_one_that_runs_is_not(make, tmp_path):
    def hang():
        yield "a", torch.zeros(2)
        started.set()
        time.sleep(60)

    context = multiprocessing.get_context("fork")
    started, info = context.Event(), TensorInfo("F32", (2,))
    stuck = Candidate({}, hang(), "", {"a": info, "b": info})
    child = context.Process(target=save, args=(stuck, tmp_path / "model"))
    child.start()
    assert started.wait(30)
    with pytest.raises(CheckpointError, match=r"another process is writing there; wait for it"):
        merge(make(**TIES), tmp_path / "model")
    assert (tmp_path / ".model.partial/model.safetensors").exists()
    child.kill()
    child.join()

    merge(make(**TIES), tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_stream_that_breaks_its_word_is_a_fault(tmp_path):
    candidate = Candidate.of({}, {"a": torch.zeros(2), "b": torch.zeros(2)}, "")
    short = Candidate({}, [("a", torch.zeros(2))], "", candidate.manifest)
    wrong = Candidate({}, [("a", torch.zeros(3))], "", candidate.manifest)

    with pytest.raises(CheckpointError, match="ended without 'b'"):
        save(short, tmp_path / "short")
    with pytest.raises(CheckpointError, match=r"'a' came as torch.float32 \[3\]"):
        save(wrong, tmp_path / "wrong")
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_heals_is_not_written_unhealed(make, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("w1 w2")
    recipe = make(**TIES, heal={"tokens": 10, "texts": str(texts), "teachers": {"math": 1.0}})

    with pytest.raises(RecipeError, match="heal: this merge cannot heal"):
        merge(recipe, tmp_path / "model")
    folder = merge(recipe, tmp_path / "model", heal=lambda candidate, sources: candidate)
    assert (folder / "model.safetensors").exists()


def test_the_tokenizer_learns_the_new_length(make, family, tmp_path):
    config = json.loads((family / "base/tokenizer_config.json").read_text())
    shutil.copytree(family, tmp_path / "family")
    (tmp_path / "family/base/tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 64}))
    recipe = make(root=tmp_path / "family", **TIES, context={"rope_type": "yarn", "factor": 2.0})

    assert AutoTokenizer.from_pretrained(merge(recipe, tmp_path / "model")).model_max_length == 128


def test_one_file_without_a_config_becomes_one_file_without_a_config(make, tmp_path):
    for value, name in enumerate(("base", "math", "code")):
        save_file({"w": torch.full((2,), float(value))}, tmp_path / name)
    (tmp_path / "tokenizer.json").write_text("a stranger's")

    folder = merge(make(root=tmp_path, method="linear", weight=0.5), tmp_path / "model")
    assert load_file(folder / "model.safetensors")["w"].tolist() == [1.5, 1.5]
    assert sorted(contents(folder)) == ["README.md", "model.safetensors"]
