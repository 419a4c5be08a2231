"""A candidate onto disk: shards, index, config, tokenizer and model card; all of it or nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from evomerge.candidate.checkpoint import TOKENIZER_FILES, TensorInfo
from evomerge.candidate.stream import TORCH_DTYPES, Candidate
from evomerge.errors import CheckpointError

LENGTH = "max_position_embeddings"
SHARD_SIZE = 5_000_000_000  # bytes of tensors a file
COPIED = (
    *TOKENIZER_FILES, "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
# The order of safetensors' own writer: dtypes from wide to narrow, names within.
WIDTH_ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2",
    "I8", "U8", "BOOL",
)  # fmt: skip


def save(
    candidate: Candidate,
    directory: str | Path,
    *,
    copy_from: Path | None = None,
    files: Mapping[str, str] | None = None,  # in the place of those copied
    card: str = "",
    shard_size: int = SHARD_SIZE,
) -> Path:
    """Write a model directory that transformers reads; the same candidate gives the same bytes.

    The directory appears under its name when everything is in it and on the disk. Raises CheckpointError where it exists
    already, where there is no room, and where a file cannot be written; then nothing is left behind.
    """
    target = Path(directory).absolute()
    copied = [copy_from / name for name in COPIED if (copy_from / name).is_file()] if copy_from else []  # none beside a file
    shards = split(candidate.manifest, shard_size)
    refuse_existing(target)
    with written_whole(target) as folder:
        _check_room(folder, sum(info.bytes for info in candidate.manifest.values()), copied)
        _write_weights(candidate, folder, shards)
        if candidate.config:
            _write_json(folder / "config.json", candidate.config)
        for file in copied:
            _copy(file, folder / file.name, candidate.config)
        for name, text in (files or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")
    return target


def refuse_existing(target: Path) -> None:
    if target.exists():
        raise CheckpointError(f"{target}: exists already; remove it, or give another directory")


def split(manifest: Mapping[str, TensorInfo], shard_size: int) -> dict[str, dict[str, TensorInfo]]:
    """Which file each tensor goes to, in the order of the manifest."""
    shards: list[dict[str, TensorInfo]] = [{}]
    room = shard_size
    for name, info in manifest.items():
        if info.bytes > room and shards[-1]:
            shards.append({})
            room = shard_size
        shards[-1][name] = info
        room -= info.bytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes its name once all is on the disk, and vanishes if anything goes wrong."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        with _locked(partial):
            yield partial
            for file in (*partial.iterdir(), partial):
                _to_disk(file)
            refuse_existing(target)
            partial.rename(target)
        _to_disk(target.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some room, or give another directory" if full else "check the disk and its permissions"
        raise CheckpointError(f"{target}: cannot be written ({error.strerror}); {remedy}") from None


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """The partial folder, empty and this process' own: one that a killed process left is taken over."""
    partial.mkdir(parents=True, exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise CheckpointError(f"{partial}: another process is writing there; wait for it, or give another directory") from None
    try:
        for left in partial.iterdir():
            left.unlink()
        yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(handle)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_room(folder: Path, weights: int, copied: list[Path]) -> None:
    needed = weights + sum(file.stat().st_size for file in copied) + 1_000_000  # headers, config, card
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{folder.parent}: no room on disk: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB free;"
            " free some, or give another directory"
        )


def _copy(file: Path, to: Path, config: Mapping[str, Any]) -> None:
    """A file of the base; a tokenizer that knew the base's length learns the new one."""
    if file.name == "tokenizer_config.json" and (file.parent / "config.json").exists():
        old, new = json.loads((file.parent / "config.json").read_text()).get(LENGTH), config.get(LENGTH)
        data = json.loads(file.read_text(encoding="utf-8"))
        if old != new and data.get("model_max_length") == old:
            return _write_json(to, data | {"model_max_length": new})
    shutil.copyfile(file, to)


def _write_weights(candidate: Candidate, folder: Path, shards: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    """Headers first, then each tensor at its place as it comes: one tensor is in memory at a time."""
    with ExitStack() as stack:
        places: dict[str, tuple[IO[bytes], int]] = {}
        for name, shard in shards.items():
            file: IO[bytes] = stack.enter_context(open(folder / name, "wb"))
            header, offsets = _header(shard)
            file.write(header)
            places |= {tensor: (file, len(header) + offset) for tensor, offset in offsets.items()}
        for name, tensor in candidate.weights:
            _check_tensor(name, tensor, candidate.manifest, places)
            file, offset = places.pop(name)
            file.seek(offset)
            file.write(_bytes(tensor))
    if places:
        raise CheckpointError(f"candidate: the stream ended without {next(iter(places))!r}; this is a fault of evomerge")
    if len(shards) > 1:
        _write_index(candidate.manifest, folder, shards)


def _header(shard: Mapping[str, TensorInfo]) -> tuple[bytes, dict[str, int]]:
    """The bytes before the data, as safetensors' own writer lays them, and where each tensor begins behind them."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name, info in sorted(shard.items(), key=lambda item: (WIDTH_ORDER.index(item[1].dtype), item[0])):
        offsets[name], start, end = end, end, end + info.bytes
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets


def _check_tensor(name: str, tensor: Tensor, manifest: Mapping[str, TensorInfo], places: Mapping[str, Any]) -> None:
    info = manifest.get(name)
    if name not in places or info is None or tuple(tensor.shape) != info.shape or tensor.dtype != TORCH_DTYPES[info.dtype]:
        raise CheckpointError(
            f"candidate: {name!r} came as {tensor.dtype} {list(tensor.shape)}, announced was {info}; this is a fault of evomerge"
        )


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _write_index(manifest: Mapping[str, TensorInfo], folder: Path, shards: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    sizes = [info.bytes for info in manifest.values()]
    elements = sum(math.prod(info.shape) for info in manifest.values())
    weight_map = {tensor: name for name, shard in shards.items() for tensor in shard}
    metadata = {"total_parameters": elements, "total_size": sum(sizes)}
    _write_json(folder / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
