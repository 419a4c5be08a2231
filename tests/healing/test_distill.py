"""A model that learns from others: it gets nearer to them, the same way every time, for as long as it was told."""

import pytest
import torch

from evomerge.errors import CheckpointError, HealingError
from evomerge.healing.distill import heal
from evomerge.healing.losses import forward_kl
from evomerge.healing.mixture import Teacher, mixture
from evomerge.recipe import Heal

TEACHERS = {"a": 0.5, "b": 0.5}


def settings(tokens=640, **dials):
    return Heal(tokens=tokens, texts="", teachers=TEACHERS, learning_rate=3e-3, **dials)


@pytest.fixture
def teachers(llama):
    return {"a": Teacher(llama(1)), "b": Teacher(llama(2))}


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def distance(module, teachers, rows):
    with torch.no_grad():
        student = module(input_ids=rows).logits.log_softmax(-1)
    return forward_kl(student, mixture(teachers, TEACHERS, rows, 1.0)).mean().item()


def test_healing_brings_a_model_nearer_to_its_teachers_on_rows_it_has_not_seen(llama, teachers, rows):
    module, unseen = llama(3), rows[40:]
    before = distance(module, teachers, unseen)

    losses = heal(module, settings(), teachers, rows[:40])

    assert distance(module, teachers, unseen) < 0.8 * before
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("temperature", "kind"), [(1.0, "shares"), (2.0, "likelihood")])
def test_the_same_healing_gives_the_same_bits_whether_teachers_remember_or_not(llama, rows, temperature, kind):
    fresh = {"a": Teacher(llama(1), memory=0), "b": Teacher(llama(2), memory=0)}
    warm = {"a": Teacher(llama(1)), "b": Teacher(llama(2))}

    healed = []
    for teachers in (fresh, warm, warm):
        heal(module := llama(3), settings(temperature=temperature, mixture=kind), teachers, rows)
        healed.append(weights(module))

    assert torch.equal(healed[0], healed[1])
    assert torch.equal(healed[0], healed[2])


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (64, 1), (65, 2), (640, 10)])
def test_there_are_as_many_steps_as_the_tokens_need(llama, teachers, rows, tokens, steps):
    assert len(heal(llama(3), settings(tokens), teachers, rows)) == steps  # 4 rows of 16 a step


def test_rows_beyond_the_tokens_are_not_looked_at(llama, teachers, rows):
    heal(long := llama(3), settings(70), teachers, rows)
    heal(exact := llama(3), settings(70), teachers, rows[:5])

    assert torch.equal(weights(long), weights(exact))


def test_a_teacher_without_a_share_is_not_asked(llama, rows):
    module, lonely = llama(3), Heal(64, "", {"a": 1.0, "b": 0.0})

    heal(module, lonely, {"a": Teacher(llama(1))}, rows)

    assert not torch.equal(weights(module), weights(llama(3)))


def test_a_model_taught_by_itself_stays_what_it_is(llama, rows):
    module = llama(3)

    losses = heal(module, Heal(64, "", {"a": 1.0}), {"a": Teacher(llama(3))}, rows)

    assert max(losses) < 1e-6


def test_the_module_is_left_as_it_was_found(llama, teachers, rows):
    module = llama(3).to(torch.bfloat16).requires_grad_(False)
    before = weights(module)

    with torch.no_grad():
        heal(module, settings(64), teachers, rows)

    assert {(p.dtype, p.requires_grad, p.grad) for p in module.parameters()} == {(torch.bfloat16, False, None)}
    assert not torch.equal(weights(module), before)


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_changes(llama, rows):
    module = llama(3)

    with pytest.raises(CheckpointError, match="a teacher knows 24 tokens and the merged model 20"):
        heal(module, Heal(64, "", {"a": 1.0}), {"a": Teacher(llama(1, vocabulary=24))}, rows)

    assert torch.equal(weights(module), weights(llama(3)))


def test_healing_that_leaves_the_finite_numbers_says_where_and_what_to_do(llama, teachers, rows):
    module = llama(3)
    with torch.no_grad():
        module.lm_head.weight[0, 0] = float("nan")

    with pytest.raises(HealingError, match=r"heal: step 1 of 10 is not finite; lower `learning_rate` \(0\.003\)"):
        heal(module, settings(), teachers, rows)
