"""Many tensors in one launch are the tensors of many launches."""

import pytest
import torch

from evomerge import kernels
from evomerge.methods.inputs import Inputs, Place
from evomerge.methods.table import merge_tensor
from tests.methods.cases import KNOBS, inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def several(method, dtype):
    """Tensors of a model: a matrix, norms, a scalar, an empty one, one that does not begin at 16 bytes."""
    made = []
    for seed, shape in enumerate([(30, 20), (7,), (), (0, 3), (500,), (7,)]):
        given = inputs(method, shape, dtype, seed=seed)
        tensors = [tensor.to(DEVICE) for tensor in (given.base, *given.sources)]
        if shape == (500,):
            tensors = [torch.cat([tensor, tensor])[3:503] for tensor in tensors]
        made.append(Inputs(tensors[0], tuple(tensors[1:]), Place(seed, f"t{seed}", given.place.sources)))
    return made


@pytest.mark.parametrize("method", KNOBS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_many_at_once_are_the_same_bits_as_one_by_one(method, dtype):
    given = several(method, dtype)

    with kernels.backend("triton"):
        alone = [merge_tensor(method, one, KNOBS[method]) for one in given]
        with kernels.together():
            at_once = [merge_tensor(method, one, KNOBS[method]) for one in given]

    for one, other in zip(at_once, alone, strict=True):
        assert torch.equal(one, other)


def test_kinds_are_kept_apart(monkeypatch):
    from evomerge.kernels import combine

    launched = []
    right = combine._launch
    monkeypatch.setattr(combine, "_launch", lambda jobs: launched.append(len(jobs)) or right(jobs))
    given = several("ties", torch.bfloat16)

    with kernels.backend("triton"):
        with kernels.together():
            at_once = [merge_tensor(method, one, KNOBS[method]) for one in given for method in ("ties", "linear")]
        counted = launched.copy()
        alone = [merge_tensor(method, one, KNOBS[method]) for one in given for method in ("ties", "linear")]

    assert counted == [5, 5]  # the empty one is in none
    assert all(torch.equal(one, other) for one, other in zip(at_once, alone, strict=True))


def test_on_a_cpu_nothing_waits_without_triton():
    given = several("ties", torch.bfloat16)[0]

    with kernels.together():
        merged = merge_tensor("ties", Inputs(given.base.cpu(), tuple(s.cpu() for s in given.sources), given.place), KNOBS["ties"])

    assert not merged.isnan().any()
