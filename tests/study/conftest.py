"""What tests of studies share."""

import pytest


@pytest.fixture
def anchored(laboratory):
    """A Fisher of the base that minds one tensor only."""
    import torch

    from evomerge.candidate.checkpoint import Checkpoint
    from evomerge.guards.ewc import write_fisher

    (laboratory / "fishers").mkdir()
    diagonal = {"layers.0.w": torch.full((2, 40), 0.5)}
    write_fisher(laboratory / "fishers/base.safetensors", diagonal, model=Checkpoint.open(laboratory / "base").fingerprint)
    return laboratory
