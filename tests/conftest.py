"""What tests of several rooms share."""

import os
from pathlib import Path

# Kernels run under Triton's interpreter where there is no GPU. It must be asked for before anything imports triton, and torch may.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest  # noqa: E402

from tests.laboratory import build  # noqa: E402


@pytest.fixture
def laboratory(tmp_path):
    """A folder with a small experiment that runs in seconds; see laboratory.py."""
    return build(tmp_path)
