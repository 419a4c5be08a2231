"""What tests of several rooms share."""

import pytest

from tests.laboratory import build


@pytest.fixture
def laboratory(tmp_path):
    """A folder with a small experiment that runs in seconds; see laboratory.py."""
    return build(tmp_path)
