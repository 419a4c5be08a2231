"""Building the C++ side: once, for this machine, by whoever comes first; and doing without it."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.kernels import compiled

MERGE = """
import torch
from evomerge import kernels
from evomerge.methods.table import merge_tensor
from tests.methods.cases import KNOBS, inputs
sides = set()
for method in ("ties", "dare_ties"):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        given = inputs(method, (999,), dtype)
        sides.add(kernels.side(*given.sources))
        here = merge_tensor(method, given, KNOBS[method])
        with kernels.backend("torch"):
            assert torch.equal(here, merge_tensor(method, given, KNOBS[method]))
print(*sides)
"""


@pytest.fixture
def compiler():
    try:
        return compiled.find_compiler()[0]
    except compiled.CannotCompile as reason:
        pytest.skip(str(reason))


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    told = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "EVOMERGE_CACHE": str(folder / "cache"), **environment}
    return subprocess.Popen([sys.executable, "-c", MERGE], env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def counting(folder: Path, compiler: str) -> tuple[str, Path]:
    """A compiler's command that counts its compilations."""
    script, log = folder / "compiler", folder / "log"
    script.write_text(f'#!/bin/sh\ncase "$*" in *-shared*) echo once >> {log};; esac\nexec {compiler} "$@"\n')
    script.chmod(0o755)
    return str(script), log


def test_processes_that_start_at_once_compile_once(tmp_path, compiler):
    command, log = counting(tmp_path, compiler)

    said = [process.communicate() for process in [start(tmp_path, CXX=command) for _ in range(2)]]

    assert said == [("native\n", "")] * 2
    assert log.read_text().splitlines() == ["once"]
    assert [path.suffix for path in sorted((tmp_path / "cache" / "kernels").iterdir())] == ["", ".so"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its flags are those of x86-64")
def test_a_plain_processor_gives_the_same_bits(tmp_path, compiler):
    said = start(tmp_path, CXX=f"{compiler} -mno-avx -mno-avx2 -mno-avx512f -mno-f16c").communicate()

    assert said == ("native\n", "")


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"CXX": "/no/such/compiler"}, "No such file"),
        ({"CXX": "false"}, "false cannot compile native.cpp"),
        ({"PATH": "/nowhere", "CXX": ""}, "none of c++, g++, clang++ is on the path"),
    ],
    ids=["missing", "broken", "none"],
)
def test_without_a_compiler_torch_does_the_work_and_says_so_once(tmp_path, environment, why):
    out, hint = start(tmp_path, **environment).communicate()

    assert out == "torch\n"
    assert len(hint.splitlines()) == 1
    assert why in hint
    assert "install a C++ compiler" in hint


def test_it_can_be_switched_off(tmp_path):
    assert start(tmp_path, EVOMERGE_NATIVE="0").communicate() == ("torch\n", "")


def test_a_cache_that_cannot_be_written_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "file"))

    assert compiled.cache_folder().is_dir()
    assert tmp_path not in compiled.cache_folder().parents


def test_another_processor_compiler_or_source_is_another_library(tmp_path, monkeypatch, compiler):
    before = compiled.fingerprint([compiler])

    others = {compiled.fingerprint([compiler, "-g"])}
    monkeypatch.setattr(compiled, "processor", lambda: "another")
    others.add(compiled.fingerprint([compiler]))
    monkeypatch.undo()
    (tmp_path / "native.cpp").write_text(compiled.SOURCE.read_text() + "\n")
    monkeypatch.setattr(compiled, "SOURCE", tmp_path / "native.cpp")
    others.add(compiled.fingerprint([compiler]))

    assert len(others - {before}) == 3
