"""Checkpoints are read by their headers, and broken ones are refused by name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.candidate.checkpoint import Checkpoint, TensorInfo
from evomerge.candidate.finite import refuse_nan
from evomerge.errors import CheckpointError
from tests.candidate.conftest import llama


def plain(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_names_shapes_and_dtypes_are_those_of_safetensors(family):
    checkpoint = Checkpoint.open(family / "base")
    expected = load_file(family / "base/model.safetensors")

    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {n: tuple(t.shape) for n, t in expected.items()}
    assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
    assert all(checkpoint.read(name).equal(tensor) for name, tensor in expected.items())
    assert checkpoint.config["model_type"] == "llama"


def test_shards_are_one_checkpoint(family, tmp_path):
    llama(0).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="50KB")
    checkpoint, whole = Checkpoint.open(tmp_path), Checkpoint.open(family / "base")

    assert len(set(checkpoint.files.values())) > 1
    assert checkpoint.tensors == whole.tensors
    assert all(checkpoint.read(name).equal(whole.read(name)) for name in whole.tensors)


def test_weights_without_a_config_are_a_checkpoint(tmp_path):
    plain(tmp_path, a=torch.zeros(2, 3))

    assert Checkpoint.open(tmp_path).tensors == {"a": TensorInfo("F32", (2, 3))}
    assert Checkpoint.open(tmp_path / "model.safetensors").config == {}


def test_every_dtype_of_safetensors_has_its_size(tmp_path):
    dtypes = [torch.float64, torch.float16, torch.int64, torch.int16, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.uint32]
    checkpoint = Checkpoint.open(plain(tmp_path, **{f"t{i}": torch.zeros(3, dtype=dtype) for i, dtype in enumerate(dtypes)}))

    assert [checkpoint.tensors[f"t{i}"].bytes for i in range(len(dtypes))] == [24, 6, 24, 6, 3, 3, 3, 12]


def test_the_fingerprint_is_the_content(family, tmp_path):
    shutil.copytree(family / "base", tmp_path / "copy")
    before = Checkpoint.open(tmp_path / "copy").fingerprint
    config = tmp_path / "copy/config.json"
    config.write_text(config.read_text().replace("64", "65", 1))

    assert before == Checkpoint.open(family / "base").fingerprint
    assert before != Checkpoint.open(tmp_path / "copy").fingerprint
    assert before != Checkpoint.open(family / "math").fingerprint


def test_how_a_batch_was_padded_makes_no_other_tokenizer(family, tmp_path):
    shutil.copytree(family / "base", tmp_path / "copy")
    file = tmp_path / "copy/tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "truncation": {"max_length": 9}}))

    assert Checkpoint.open(tmp_path / "copy").tokenizer == Checkpoint.open(family / "base").tokenizer
    assert {file.name for file in Checkpoint.open(family / "base").tokenizer_files} >= {"tokenizer.json", "tokenizer_config.json"}


def test_headers_are_read_without_torch(family):
    code = (
        "import sys; from evomerge.candidate import plan, checkpoint; checkpoint.Checkpoint.open(sys.argv[1]).fingerprint;"
        "print([m for m in ('torch', 'transformers', 'safetensors', 'numpy') if m in sys.modules])"
    )

    assert subprocess.check_output([sys.executable, "-c", code, str(family / "base")], text=True).strip() == "[]"


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def cut_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def append(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0" * 3)


def change_header(old: str, new: str):
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        text = data[8 : 8 + length].decode().rstrip().replace(old, new).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return change


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


BROKEN = {
    "missing": (shutil.rmtree, "no such file or directory; correct the path"),
    "empty": (lambda folder: (folder / "model.safetensors").unlink(), "has no .*safetensors file; name the directory"),
    "pickle": (only_pickle, "pytorch_model.bin: is a pickle, .*; convert the model to safetensors"),
    "truncated": (cut, "model.safetensors: is truncated: its tensors need 32 bytes, 31 are there; copy or download it again"),
    "header cut": (cut_header, "is truncated: its header should end at byte"),
    "no bytes": (write("model.safetensors", ""), "is truncated"),
    "no safetensors": (write("model.safetensors", "{" * 64), "is not a sound safetensors file: its header claims"),
    "no JSON": (change_header('"dtype"', "dtype"), "its header is not the JSON of safetensors"),
    "trailing": (append, "3 bytes behind the last tensor belong to none"),
    "gap": (change_header("[24,32]", "[26,34]"), "'b' begins at byte 26 of the data, 24 expected"),
    "wrong size": (change_header("[24,32]", "[24,33]"), "'b' is given 9 bytes, its shape and dtype need 8"),
    "dtype": (change_header("F32", "Q32"), "'a' has the dtype Q32, which is not known here; convert the model to BF16"),
    "adapter": (write("adapter_config.json", "{}"), "is a LoRA adapter, not a model; name both: .*adapter:"),
    "config": (write("config.json", "{"), "config.json: is not readable JSON .*; copy or download it again"),
    "config list": (write("config.json", "[]"), "config.json: is not a JSON mapping"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_refused_with_its_remedy(fault, tmp_path):
    folder = plain(tmp_path / "model", a=torch.zeros(2, 3), b=torch.zeros(2))
    breakage, words = BROKEN[fault]
    breakage(folder)

    with pytest.raises(CheckpointError, match=words) as caught:
        Checkpoint.open(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_given_as_a_file_is_refused(tmp_path):
    torch.save({}, tmp_path / "weights.pt")

    with pytest.raises(CheckpointError, match=r"weights.pt: is a pickle"):
        Checkpoint.open(tmp_path / "weights.pt")


def test_a_missing_shard_is_named(tmp_path):
    llama(0).save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()

    with pytest.raises(CheckpointError, match=f"{shard.name}: is missing, though model.safetensors.index.json lists it"):
        Checkpoint.open(tmp_path)


def test_a_shard_without_a_listed_tensor_is_named(tmp_path):
    llama(0).save_pretrained(tmp_path, max_shard_size="50KB")
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["ghost"] = sorted(data["weight_map"].values())[0]
    index.write_text(json.dumps(data))

    with pytest.raises(CheckpointError, match=r"lacks 'ghost', though model.safetensors.index.json lists it there"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_value_that_is_no_number_is_named(value, dtype, tmp_path):
    tensor = torch.zeros(5000, dtype=dtype)
    tensor[4999] = value
    checkpoint = Checkpoint.open(plain(tmp_path, fine=torch.zeros(3), sick=tensor, whole=torch.zeros(2, dtype=torch.int64)))

    with pytest.raises(CheckpointError, match=r"'sick' has NaN or infinite values; take a checkpoint from before"):
        refuse_nan(checkpoint)


def test_a_sound_checkpoint_passes(family):
    refuse_nan(Checkpoint.open(family / "base"))
