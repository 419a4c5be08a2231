"""Whole merges beside `cp`: the benchmark measures processes that really merged, and says when one failed."""

import re
import sys

import pytest
from safetensors.torch import load_file

from evomerge.bench.disk import bench_disk
from evomerge.bench.llamas import MILLIONS, TINY, tensors_of, write_family
from evomerge.bench.process import run
from evomerge.errors import EvomergeError


def test_the_models_are_what_they_are_said_to_be(tmp_path):
    size = write_family(tmp_path, TINY, ("one",))

    base, one = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "one"))
    assert size == sum(tensor.numel() for tensor in base.values())
    assert {name: tuple(tensor.shape) for name, tensor in one.items()} == tensors_of(TINY)
    assert all((base[name] != one[name]).any() for name in base)


def test_transformers_reads_a_model_and_knows_all_its_tensors(tmp_path):
    from transformers import AutoModelForCausalLM

    write_family(tmp_path, TINY, ())
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)

    assert {name for name, _ in model.named_parameters()} == {*tensors_of(TINY)}
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_the_model_of_the_comparison_has_two_hundred_million_parameters():
    sizes = [shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in tensors_of(MILLIONS).values()]

    assert 1.9e8 < sum(sizes) < 2.3e8


def test_a_line_has_seconds_and_memory():
    head, room, line = bench_disk(shape=TINY, methods=("linear",))

    assert head.endswith("one thread, 0 M parameters in bf16, base and 3 fine-tunes")
    assert room == "  memory may be 300 MB: the largest tensor times (sources + 2), and 300 MB"
    assert float(re.search(r"linear +evomerge +([\d.]+) s", line)[1]) < 60
    assert int(re.search(r"(\d+) MB", line)[1]) > 50


def test_cpu_seconds_and_memory_are_those_of_the_process():
    code = "import time; held = bytearray(80_000_000)\nwhile time.process_time() < 0.5: pass"

    cost = run([sys.executable, "-c", code])

    assert 0.5 <= cost.seconds < 5
    assert cost.anonymous > 75e6


def test_a_merge_that_fails_is_no_figure():
    with pytest.raises(EvomergeError, match="ended with 3: no such luck"):
        run([sys.executable, "-c", "import sys; print('no such luck'); sys.exit(3)"])
