"""A merge written as a LoRA: what is kept is what the singular values say, and the adapter makes the merge again."""

import pytest
import torch
from torch.testing import assert_close

from evomerge.candidate import lora
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.lora import factors, merge_to_lora
from evomerge.candidate.stream import Sources, materialize
from evomerge.errors import CheckpointError, RecipeError

Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"
ADD = {"method": "task_arithmetic", "weight": 0.4}


def delta_of(recipe, family, name):
    merged = dict(materialize(recipe, Sources()).weights)[name].double()
    return merged - Checkpoint.open(family / "whole-base").read(name).double()


def test_at_full_rank_the_adapter_over_the_base_is_the_merge(make, family, tmp_path):
    recipe = make(prefix="whole-", **ADD)

    kept = merge_to_lora(recipe, tmp_path / "lora", 64)

    again = Checkpoint.open(f"{family / 'whole-base'}+{tmp_path / 'lora'}")
    merged = dict(materialize(recipe, Sources()).weights)
    for name in (Q, DOWN, "lm_head.weight"):
        assert_close(again.read(name).float(), merged[name], rtol=1e-4, atol=1e-6)
    assert kept.least == pytest.approx(1.0, abs=1e-9)
    assert kept.outside == 6  # the embedding and five norms
    assert kept.share == pytest.approx(1 - kept.lost, abs=1e-9)


def test_the_energy_kept_is_that_of_the_largest_singular_values(make, family, tmp_path):
    recipe = make(prefix="whole-", **ADD)

    kept = merge_to_lora(recipe, tmp_path / "lora", 5)

    s = torch.linalg.svdvals(delta_of(recipe, family, Q))
    again = Checkpoint.open(f"{family / 'whole-base'}+{tmp_path / 'lora'}")
    written = again.read(Q) - Checkpoint.open(family / "whole-base").read(Q).double()
    assert float(written.square().sum()) == pytest.approx(float((s[:5] ** 2).sum()), rel=1e-4)
    assert 0 < kept.least < kept.share < 1
    assert str(kept).startswith("rank 5, 15 tensors: ")


def test_a_large_matrix_is_decomposed_by_chance_and_nearly_as_well(monkeypatch):
    torch.manual_seed(0)
    delta = torch.randn(120, 8).double() @ torch.randn(8, 90).double() + 0.01 * torch.randn(120, 90).double()
    up, down = factors(delta, 8)
    monkeypatch.setattr(lora, "EXACT", 1)

    other, way = factors(delta, 8)

    assert_close(other @ way, up @ down, rtol=1e-6, atol=1e-6)
    assert torch.equal(factors(delta, 8)[0], other)


def test_what_no_lora_can_say_is_refused(make, tmp_path):
    with pytest.raises(RecipeError, match="a LoRA adds to the base's weights; leave out heal, context"):
        merge_to_lora(make(prefix="whole-", **ADD, context={"rope_type": "yarn", "factor": 2.0}), tmp_path / "lora", 4)
    with pytest.raises(CheckpointError, match="nothing to write: the recipe changes no matrix"):
        merge_to_lora(make(prefix="whole-", method="task_arithmetic", weight=0.0), tmp_path / "lora", 4)
    assert not (tmp_path / "lora").exists()
