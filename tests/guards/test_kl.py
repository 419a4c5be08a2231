"""KL on prompts against a float64 computation by hand, on tiny Llamas."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.errors import GuardError
from evomerge.guards.kl import divergence, pad, reference

PROMPTS = [[5, 1, 4, 2], [3, 3], [9, 8, 7, 6, 5, 4, 3], [2], [1, 2, 3]]


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    return LlamaForCausalLM(config).requires_grad_(False)


@pytest.fixture(scope="module")
def candidate(base):
    moved = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.3 * parameter.std().nan_to_num() * torch.randn_like(parameter))
    return moved


def by_hand(base, candidate):
    """KL of every prompt token, each prompt alone and nothing padded, in float64."""
    tokens = []
    for prompt in PROMPTS:
        p, q = (
            copy.deepcopy(m).double()(input_ids=torch.tensor([prompt])).logits[0].softmax(-1).numpy() for m in (base, candidate)
        )
        tokens += [sum(a * np.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)]
    return np.array(tokens)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_mean_and_95th_percentile_are_those_of_the_unpadded_tokens(base, candidate, batch_size):
    stored = reference(base, pad(PROMPTS, batch_size))

    kl = divergence(candidate, stored)

    expected = by_hand(base, candidate)
    assert stored.tokens == len(expected) == 17
    assert kl.mean == pytest.approx(expected.mean(), rel=1e-4)
    assert kl.p95 == pytest.approx(np.quantile(expected, 0.95), rel=1e-4)
    assert kl.mean > 0.001


def test_padding_on_the_left_is_left_out_too(base):
    batch = {
        "input_ids": torch.tensor([[0, 0, 5, 1], [3, 3, 2, 1]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
    }

    assert reference(base, [batch]).tokens == 6


def test_a_tensor_alone_has_no_padding(base, candidate):
    ids = torch.tensor([[5, 1, 4], [3, 0, 0]])
    mask = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    assert divergence(candidate, reference(base, [ids])) == pytest.approx(divergence(candidate, reference(base, [mask])))


def test_the_base_is_no_distance_from_itself(base):
    kl = divergence(base, reference(base, pad(PROMPTS)))

    assert (kl.mean, kl.p95) == (0.0, 0.0)


def test_it_is_the_divergence_from_base_to_candidate_and_not_the_reverse(base, candidate):
    forward = divergence(candidate, reference(base, pad(PROMPTS)))
    reverse = divergence(base, reference(candidate, pad(PROMPTS)))

    assert forward.mean == pytest.approx(by_hand(base, candidate).mean(), rel=1e-4)
    assert reverse.mean != pytest.approx(forward.mean, rel=1e-3)


def test_a_candidate_of_nans_is_infinitely_far(base):
    broken = copy.deepcopy(base)
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = float("nan")

    assert divergence(broken, reference(base, pad(PROMPTS))) == (float("inf"), float("inf"))


@pytest.mark.parametrize("training", [True, False])
def test_a_model_in_training_is_asked_without_dropout_and_goes_on_training(base, training):
    model = copy.deepcopy(base).train(training)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5

    assert divergence(model, reference(base, pad(PROMPTS))).mean == 0
    assert model.training is training


def test_predictions_in_bfloat16_are_compared_in_float32(base):
    stored = reference(copy.deepcopy(base).bfloat16(), pad(PROMPTS))

    assert {log_probs.dtype for log_probs in stored.log_probs} == {torch.float32}
    assert torch.cat(list(stored.log_probs)).exp().sum(-1) == pytest.approx(np.ones(17), abs=1e-5)


def test_an_empty_prompt_set_is_refused(base):
    with pytest.raises(GuardError, match="holds no token"):
        reference(base, [])
