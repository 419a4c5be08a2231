"""A merge straight into the memory of a live module: no copy where dtype and shape allow it, the same weights everywhere."""

import pytest
import torch

from evomerge import kernels
from evomerge.candidate import live
from evomerge.candidate.stream import Sources, materialize

RULES = {"ties": {"weight": 0.5, "density": 0.3}, "linear": {"weight": 0.5}, "model_stock": {"filter_wise": True}}


@pytest.mark.parametrize("side", ["torch", "native"])
@pytest.mark.parametrize("method", RULES)
def test_results_are_written_where_they_are_to_be(method, side, make, monkeypatch):
    if side == "native" and kernels.functions() is None:
        pytest.skip("no C++ compiler")
    recipe, sources = make(method=method, **RULES[method]), Sources()
    candidate = materialize(recipe, sources)
    module, copied = live.module(candidate.config, torch.bfloat16), []
    same = kernels.same_memory
    monkeypatch.setattr(kernels, "same_memory", lambda one, other: same(one, other) or copied.append(one.shape))

    with kernels.backend(side):
        live.load(candidate, module)
        expected = dict(candidate.weights)

    weights = dict(module.named_parameters())
    assert copied == []
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_a_module_of_another_dtype_is_given_what_was_rounded_to_the_candidate_s(make):
    candidate = materialize(make(method="linear", weight=0.5), Sources())
    module = live.module(candidate.config, torch.float32)

    live.load(candidate, module)

    weights = dict(module.named_parameters())
    assert all(torch.equal(weights[name], tensor.float()) for name, tensor in candidate.weights)


def test_a_target_is_taken_once_and_only_if_it_can_hold_the_result():
    target = torch.zeros(2, 3)

    with kernels.into(target):
        other = [kernels.result((2, 2), torch.float32, target.device), kernels.result((2, 3), torch.bfloat16, target.device)]
        first, second = (kernels.result((3, 2), torch.float32, target.device) for _ in range(2))

    assert kernels.same_memory(first, target)
    assert not any(kernels.same_memory(tensor, target) for tensor in (*other, second))
    assert not kernels.same_memory(kernels.result((2, 3), torch.float32, target.device), target)
