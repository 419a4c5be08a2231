"""A model directory read lazily: config and headers at once, a tensor only when it is asked for."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.candidate.files import PICKLES, contained, not_pickle
from evomerge.errors import CheckpointError
from evomerge.recipe import locate

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("F64", "F32", "F16", "BF16")  # what can be merged
ITEMSIZE = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2},
    **{"I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8},
}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of a tensor; `dtype` is its name there, as BF16."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: its config, what tensors it has, and a way to read one."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, Path]  # tensor -> the file it lies in
    carried: frozenset[str] = frozenset()  # of a base: tensors that are merged with nothing, and written as they are
    _open: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, location: str | Path, role: str = "") -> Checkpoint:
        """The checkpoint in a directory, in one safetensors file, in the zoo or on the hub; `model+adapter` with a LoRA over it.

        Raises CheckpointError, led by `role`.
        """
        try:
            return _with_adapter(str(location)) or cls._opened(find(str(location)))
        except CheckpointError as error:
            raise CheckpointError(f"{role}: {error}" if role else str(error)) from None

    @classmethod
    def _opened(cls, path: Path) -> Checkpoint:
        tensors: dict[str, TensorInfo] = {}
        files: dict[str, Path] = {}
        for file in _weight_files(path):
            for name, info in read_header(file).items():
                if name in tensors:
                    raise CheckpointError(f"{file}: {name!r} lies in {files[name].name} too; remove one of the two files")
                tensors[name], files[name] = info, file
        for file in path.iterdir() if path.is_dir() else ():
            if file.name in ("config.json", "generation_config.json", *TOKENIZER_FILES):
                contained(file, path)
        return cls(path, _config(path), tensors, files)

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU; its pages come from the disk when they are touched."""
        from safetensors import safe_open

        file = self.files[name]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor

    def size_of(self, name: str) -> int:
        """How many bytes `read` gives."""
        return self.tensors[name].bytes

    @functools.cached_property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The files that make up the tokenizer, where the checkpoint is a directory that has one."""
        return self._present(*TOKENIZER_FILES)

    @functools.cached_property
    def tokenizer(self) -> str | None:
        """A hash of what text becomes under this tokenizer; None where there is no tokenizer."""
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"):
            if found := self._present(name):
                return _tokenizer_hash(found[0])
        return None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the content of every file that makes up the model."""
        weights = sorted(set(self.files.values()))
        files = [*weights, *self._present("config.json", "generation_config.json"), *self.tokenizer_files]
        return hashlib.sha256(json.dumps([[file.name, digest(file)] for file in files]).encode()).hexdigest()

    def _present(self, *names: str) -> tuple[Path, ...]:
        return tuple(self.path / name for name in names if (self.path / name).is_file()) if self.path.is_dir() else ()


def find(location: str) -> Path:
    """The path of a model or adapter: as `locate`, and for an id of the hub where the hub's cache holds it."""
    from evomerge.candidate.hub import is_hub_id, snapshot

    return snapshot(location) if is_hub_id(location) else locate(location)


def _with_adapter(location: str) -> Checkpoint | None:
    """A model with a LoRA, where the location names both; a plus may also be part of a path."""
    model, plus, adapter = location.partition("+")
    if not plus or locate(location).exists():
        return None
    from evomerge.candidate.adapter import open_adapter

    return open_adapter(Checkpoint._opened(find(model)), find(adapter))


def digest(file: Path) -> str:
    """SHA-256 of a file's content; taken once a process as long as its size and time stay."""
    status = file.stat()
    return _digest(file, status.st_size, status.st_mtime_ns)


@functools.cache
def _digest(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tokenizer_hash(file: Path) -> str:
    """Of a tokenizer.json without what changes no token: how a batch was last padded and cut."""
    if file.suffix != ".json":
        return digest(file)
    data = read_json(file)
    meaning = {key: value for key, value in data.items() if key not in ("version", "padding", "truncation")}
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def _weight_files(path: Path) -> list[Path]:
    if not path.exists():
        if path.is_symlink():
            contained(path, path.parent)
        raise CheckpointError(f"{path}: no such file or directory; correct the path, or download the model into it first")
    if path.is_file():
        return [not_pickle(path)]
    index = path / "model.safetensors.index.json"
    if not (path / "model.safetensors").exists() and index.exists():
        return list(_shards(contained(index, path)))
    if (path / "adapter_config.json").exists():
        raise CheckpointError(f"{path}: is a LoRA adapter, not a model; name both: {{model: ITS MODEL, adapter: {path}}}")
    found = [path / "model.safetensors"] if (path / "model.safetensors").exists() else sorted(path.glob("*.safetensors"))
    if not found:
        not_pickle(next((file for file in sorted(path.iterdir()) if file.suffix in PICKLES), path))
        raise CheckpointError(f"{path}: has no *.safetensors file; name the directory that holds the model's weights")
    return [contained(file, path) for file in found]


def _shards(index: Path) -> Iterator[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no 'weight_map'; download the file again")
    for name in sorted(set(weight_map.values())):
        shard = index.parent / str(name)
        if not shard.exists() and not shard.is_symlink():
            raise CheckpointError(f"{shard}: is missing, though {index.name} lists it; download the model again")
        contained(shard, index.parent)
        listed = {tensor for tensor, file in weight_map.items() if file == name}
        if absent := sorted(listed - set(read_header(shard))):
            raise CheckpointError(f"{shard}: lacks {absent[0]!r}, though {index.name} lists it there; download the model again")
        yield shard


def _config(path: Path) -> dict[str, Any]:
    """The config beside the weights; weights of something else than a language model may have none."""
    file = path / "config.json"
    return read_json(file) if path.is_dir() and file.exists() else {}


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file says. Raises CheckpointError where it is not readable, or no mapping."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: is not readable JSON ({error}); copy or download it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: is not a JSON mapping; copy or download it again")
    return data


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by its header alone, checked against the size of the file."""
    try:
        status = file.stat()
        return _read_header(file, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from None


@functools.lru_cache(maxsize=1024)
def _read_header(file: Path, size: int, changed: int) -> dict[str, TensorInfo]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or (length > size - 8 and length <= LONGEST_HEADER):
            raise _truncated(file, f"its header should end at byte {8 + length}, the file at {size}")
        if length > LONGEST_HEADER:
            raise _corrupt(file, f"its header claims {length} bytes")
        text = stream.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        spans = {name: _span(file, name, entry) for name, entry in entries.items()}
    except (ValueError, AttributeError, KeyError, TypeError):
        raise _corrupt(file, "its header is not the JSON of safetensors") from None
    _check_layout(file, spans, size - 8 - length)
    return {name: info for name, (_, _, info) in spans.items()}


def _span(file: Path, name: str, entry: Mapping[str, Any]) -> tuple[int, int, TensorInfo]:
    start, end = map(int, entry["data_offsets"])
    if entry["dtype"] not in ITEMSIZE:
        raise CheckpointError(
            f"{file}: {name!r} has the dtype {entry['dtype']}, which is not known here; convert the model to BF16, F16 or F32"
        )
    info = TensorInfo(entry["dtype"], tuple(map(int, entry["shape"])))
    if min((start, *info.shape)) < 0 or end - start != info.bytes:
        raise _corrupt(file, f"{name!r} is given {end - start} bytes, its shape and dtype need {info.bytes}")
    return start, end, info


def _check_layout(file: Path, spans: Mapping[str, tuple[int, int, TensorInfo]], room: int) -> None:
    """The data lie one after the other without gaps, and end where the file ends."""
    expected = 0
    for name, (start, end, _) in sorted(spans.items(), key=lambda item: item[1][:2]):
        if start != expected:
            raise _corrupt(file, f"{name!r} begins at byte {start} of the data, {expected} expected")
        expected = end
    if expected > room:
        raise _truncated(file, f"its tensors need {expected} bytes, {room} are there")
    if expected < room:
        raise _corrupt(file, f"{room - expected} bytes behind the last tensor belong to none")


def _truncated(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file}: is truncated: {what}; copy or download it again")


def _corrupt(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file}: is not a sound safetensors file: {what}; copy or download it again")
