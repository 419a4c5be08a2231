import pytest


@pytest.fixture(autouse=True)
def poison(poisoned_memory):
    """Everywhere in this room."""
