"""The benchmark of the kernels: it refuses what disagrees, and needs torch alone."""

import math
import os
import subprocess
import sys

import pytest
import torch

from evomerge import kernels, masks
from evomerge.bench import cases, model, timing
from evomerge.bench import kernels as benches
from evomerge.errors import EvomergeError
from evomerge.kernels import compiled

pytestmark = pytest.mark.skipif(compiled.functions() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(cases.SHAPES, "small", (50, 41))
    monkeypatch.setattr(timing, "ENOUGH", 0.01)
    monkeypatch.setattr(benches, "_compiled", lambda *_: "-")  # half a minute each


def test_a_line_for_each_method_and_number_of_sources():
    lines = list(benches.bench_kernels(["small"], counts=(2, 8)))

    assert "GB/s" in lines[1]
    found = [line.split()[:2] for line in lines[2:]]
    both = [[method, f"K={count}"] for count in (2, 8) for method in cases.METHODS if method != "slerp"]
    assert sorted(found) == sorted([*both, ["slerp", "K=1"]])


@pytest.mark.parametrize("factor", [1 + 1e-6, 1.1, float("nan")])
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_a_pair_that_disagrees_is_not_timed(method, factor, monkeypatch):
    from evomerge.kernels import native

    right = native.combine
    monkeypatch.setattr(native, "combine", lambda *given, **asked: right(*given, **asked) * factor)

    with pytest.raises(EvomergeError, match=f"{method} .* not timed"):
        list(benches.bench_kernels(["small"], counts=(3,), methods=(method,)))


def test_a_fault_behind_the_first_elements_is_seen(monkeypatch):
    from evomerge.kernels import native

    def torn(*given, **asked):
        merged = right(*given, **asked)
        merged.view(-1)[1000:] = 0
        return merged

    right = native.combine
    monkeypatch.setattr(native, "combine", torn)
    monkeypatch.setattr(benches, "HEAD", 1000)

    with pytest.raises(EvomergeError, match="differs from torch"):
        list(benches.bench_kernels(["small"], counts=(3,), methods=("ties",)))


@pytest.mark.parametrize("method", cases.METHODS)
def test_what_torch_compile_is_given_is_the_method(method, monkeypatch):
    monkeypatch.setattr(cases, "RATE", 0.0)
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)  # nothing is dropped
    monkeypatch.setattr(masks, "draw", lambda key, start, count: torch.ones(count))
    given = cases.Tensors.make((50, 41), 1 if method == "slerp" else 3, torch.float32, "cpu")
    asked = cases.options(method, given)

    with kernels.backend("torch"):
        merged = cases.call(method, given, asked)()

    assert torch.allclose(cases.plain(method, given, asked)(given.base, *given.sources), merged, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_a_whole_model_is_merged_into_one_place_and_compared(method):
    shapes = model.llama(40, 16, 24, 2)

    head, line = model.bench_model(shapes, "native", (method,))

    assert len(shapes) == 3 + 2 * 9
    assert f"{sum(math.prod(shape) for shape in shapes.values()):,} parameters" in head
    assert line.split()[0] == method
    assert "times the" in line


def test_a_whole_model_with_one_wrong_tensor_is_not_timed(monkeypatch):
    from evomerge.kernels import native

    def wrong(*given, **asked):
        merged = right(*given, **asked)
        if merged.shape == (24, 16):
            merged[-1, -1] += 0.1
        return merged

    right = native.combine
    monkeypatch.setattr(native, "combine", wrong)

    with pytest.raises(EvomergeError, match=r"ties of \[24, 16\] in a whole model is wrong; not timed"):
        list(model.bench_model(model.llama(40, 16, 24, 1), "native", ("ties",)))


def test_a_7b_has_as_many_parameters_as_it_should():
    assert sum(math.prod(shape) for shape in model.LLAMA.values()) == 6_738_415_616  # Llama 2 7B


def test_it_needs_torch_alone():
    code = """
import sys
for name in ("optuna", "lm_eval", "transformers", "safetensors", "datasets", "typer", "rich", "yaml", "scipy", "mergekit"):
    sys.modules[name] = None
from evomerge.bench import cases, kernels, timing
cases.SHAPES["small"] = (50, 41)
kernels._compiled = lambda *_: "-"
kernels.CPU_SHAPES, kernels.COUNTS, timing.ENOUGH = ("small",), (2,), 0.01
sys.argv = ["bench", "kernels"]
import runpy
runpy.run_module("evomerge.bench", run_name="__main__")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-2000:]
    assert "dare_ties" in done.stdout
