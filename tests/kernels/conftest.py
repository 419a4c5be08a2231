"""Kernels run on a GPU, or under Triton's interpreter (see ../conftest.py)."""

import importlib.util

import pytest
import torch


@pytest.fixture(autouse=True)
def poison(poisoned_memory):
    """Everywhere in this room."""


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton"
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "kernels" and "without_triton" not in item.name:
            item.add_marker(needs_triton)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here: these tests run where torch.cuda.is_available()"))
