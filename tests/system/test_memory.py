"""Peak memory: the largest tensor times (sources + 2), plus 300 MB, whatever the size of the model.

What is counted is RssAnon: pages of mapped files can be given back at any time. The models of a 7B's shape are written sparse,
so they take no room on the disk; the merged one would, so its bytes go to /dev/null, tensor by tensor as `save` writes them.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evomerge.bench.llamas import config_of, tensors_of
from evomerge.bench.process import run
from evomerge.candidate.checkpoint import TensorInfo
from evomerge.candidate.save import _header
from evomerge.methods.table import METHODS
from tests.system.searches import ROOT

LLAMA = {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32}
BESIDE = 300_000_000
START = 1 << 15  # elements at the beginning of each tensor that are not zero
PASS = """
import sys
from evomerge.candidate.save import _bytes
from evomerge.candidate.stream import Sources, materialize
from evomerge.recipe import Recipe

candidate = materialize(Recipe.read(sys.argv[1]), Sources(), hashed=False)
with open("/dev/null", "wb") as null:
    written = sum(null.write(_bytes(tensor)) for _, tensor in candidate.weights)
assert written == sum(info.bytes for info in candidate.manifest.values())
"""


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def write_sparse(folder: Path, shape: dict[str, int], seed: int) -> Path:
    """A model whose tensors begin with numbers and are holes from there on."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(shape)))
    tensors = {name: TensorInfo("BF16", size) for name, size in tensors_of(shape).items()}
    header, offsets = _header(tensors)
    generator = torch.Generator().manual_seed(seed)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header)
        for name, offset in offsets.items():
            numbers = 0.02 * torch.randn(min(START, tensors[name].elements), generator=generator)
            file.seek(len(header) + offset)
            file.write(numbers.bfloat16().view(torch.uint8).numpy())
        file.truncate(len(header) + sum(info.bytes for info in tensors.values()))
    return folder


def test_a_llama_2_7b_passes_in_little_memory(tmp_path):
    """TIES where the largest tensors are, an average of two models elsewhere."""
    for seed, name in enumerate(("base", "one", "two")):
        write_sparse(tmp_path / name, LLAMA, seed)
    ties = {"method": "ties", "density": 0.3, "weight": 0.5}
    rules = [{"match": match, **ties} for match in ("*embed*", "lm_head*", "*.layers.0.*")]
    recipe = {
        "base": "base",
        "sources": {"one": "one", "two": "two"},
        "rules": [*rules, {"match": "*", "method": "linear", "weight": 0.5}],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    sizes = [math.prod(size) for size in tensors_of(LLAMA).values()]

    cost = run([sys.executable, "-c", PASS, str(tmp_path / "recipe.yaml")])

    assert sum(sizes) == 6_738_415_616
    assert cost.anonymous < 2 * max(sizes) * (2 + 2) + BESIDE, cost
    assert cost.anonymous < 4e9


EACH = """
import os, sys, threading, time
import torch
from evomerge.bench.process import anonymous_memory
from evomerge.methods.inputs import Inputs, Place
from evomerge.methods.table import merge_tensor
from tests.methods.cases import KNOBS, OTHERWISE, count_of

folder, methods, shape = sys.argv[1], sys.argv[2].split(","), tuple(map(int, sys.argv[3:]))
peak, going = 0, True

def watch():
    global peak
    while going:
        peak = max(peak, anonymous_memory(os.getpid()))
        time.sleep(0.002)

def mapped(k):  # as a checkpoint's tensors are: pages of a file
    return torch.from_file(f"{folder}/{k}", shared=True, size=shape[0] * shape[1], dtype=torch.bfloat16).view(shape)

threading.Thread(target=watch, daemon=True).start()
base, *sources = [mapped(k) for k in range(4)]
for method in methods:
    for table in (KNOBS, OTHERWISE):
        count = count_of(method)
        peak = 0
        merge_tensor(method, Inputs(base, tuple(sources[:count]), Place(0, "t", ("a", "b", "c")[:count])), table[method])
        print(method, count, peak)
going = False
"""
# They decompose tensors or solve rows in float64
MORE = ("tsvm", "iso_c", "regmean", "fisher")


def test_no_method_needs_more_than_its_sources_and_two_tensors(tmp_path):
    rows, columns = 8192, 4096
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(rows, columns, generator=generator)
    for k in range(4):
        moved = base if k == 0 else base + 0.001 * torch.randn(rows, columns, generator=generator)
        (tmp_path / str(k)).write_bytes(moved.bfloat16().view(torch.uint8).numpy().tobytes())
    methods = ",".join(method for method in METHODS if method not in MORE)
    done = subprocess.run(
        [sys.executable, "-c", EACH, str(tmp_path), methods, str(rows), str(columns)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    peaks = [(method, int(count), int(peak)) for method, count, peak in map(str.split, done.stdout.splitlines())]
    beyond = [(method, peak) for method, count, peak in peaks if peak > 2 * rows * columns * (count + 2) + BESIDE]
    assert len(peaks) == 2 * (len(METHODS) - len(MORE))
    assert beyond == []
