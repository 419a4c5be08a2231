"""What tests of several rooms share."""

import contextlib
import os
from pathlib import Path

# Without a GPU kernels run under Triton's interpreter, to be asked for before anything imports triton; torch may.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from tests.laboratory import build

with contextlib.suppress(ImportError):  # the environments of make test-oracle, test-vllm and test-system do without
    from hypothesis import HealthCheck, settings

    # machines are shared: how long an example takes says nothing about the code
    settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("shared")


@pytest.fixture
def laboratory(tmp_path):
    """A folder with a small experiment that runs in seconds; see laboratory.py."""
    return build(tmp_path)


@pytest.fixture
def poisoned_memory(monkeypatch):
    """What `torch.empty` gives is NaN, so that an output nobody wrote shows."""
    import torch

    empty = torch.empty

    def poisoned(*size, **options):
        tensor = empty(*size, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
