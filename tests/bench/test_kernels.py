"""The benchmark of the kernels: it refuses what disagrees, and needs torch alone."""

import os
import subprocess
import sys

import pytest
import torch

from evomerge import kernels
from evomerge.bench import cases
from evomerge.bench import kernels as benches
from evomerge.errors import EvomergeError
from evomerge.kernels import compiled

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(cases.SHAPES, "small", (50, 41))
    monkeypatch.setattr(benches, "ENOUGH", 0.01)
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


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties"])
def test_what_torch_compile_is_given_is_the_method(method, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(cases, "RATE", 0.0)
    given = cases.Tensors.make((50, 41), 3, torch.float32, "cpu")
    asked = cases.options(method, given)

    with kernels.backend("torch"):
        merged = cases.call(method, given, asked)()

    assert torch.allclose(cases.plain(method, given, asked)(), merged, rtol=1e-5, atol=1e-7)


def test_it_needs_torch_alone():
    code = """
import sys
for name in ("optuna", "lm_eval", "transformers", "safetensors", "datasets", "typer", "rich", "yaml", "scipy", "mergekit"):
    sys.modules[name] = None
from evomerge.bench import cases, kernels
cases.SHAPES["small"] = (50, 41)
kernels._compiled = lambda *_: "-"
kernels.CPU_SHAPES, kernels.COUNTS, kernels.ENOUGH = ("small",), (2,), 0.01
sys.argv = ["bench", "kernels"]
import runpy
runpy.run_module("evomerge.bench", run_name="__main__")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-2000:]
    assert "dare_ties" in done.stdout
