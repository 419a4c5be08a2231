"""A candidate in a live module is the model that transformers would load from disk, bit for bit."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.candidate import live
from evomerge.candidate.checkpoint import Checkpoint, TensorInfo
from evomerge.candidate.save import save
from evomerge.candidate.stream import Candidate, Sources, materialize
from evomerge.errors import CheckpointError

TIES = {"method": "ties", "weight": {"math": [0.2, 0.8], "code": 0.5}, "density": 0.4}
TOKENS = torch.arange(80).view(2, 40) % 40
CONTEXTS = [None, "linear", "ntk", "yarn"]
YARN = {"rope_type": "yarn", "factor": 2.5, "beta_fast": 4.0}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits


def from_disk(candidate, folder):
    return AutoModelForCausalLM.from_pretrained(save(candidate, folder), dtype=torch.float32)


def base_config(family, prefix=""):
    return Checkpoint.open(family / f"{prefix}base").config


@pytest.mark.parametrize("kind", CONTEXTS)
@pytest.mark.parametrize("prefix", ["", "tied-", "whole-"])
def test_live_logits_are_those_of_the_written_model(prefix, kind, make, family, tmp_path):
    context = kind and ({**YARN, "factor": 2.5} if kind == "yarn" else {"rope_type": kind, "factor": 2.5})
    candidate = materialize(make(prefix=prefix, **TIES, context=context), Sources())
    model = live.module(base_config(family, prefix))
    live.load(candidate, model)

    assert logits(model).equal(logits(from_disk(candidate, tmp_path / "model")))


def test_the_next_candidate_sees_nothing_of_the_one_before(make, family, tmp_path):
    sources, model = Sources(resident=True), live.module(base_config(family))
    plain = materialize(make(**TIES), sources)
    live.load(plain, model)
    before = logits(model)
    for factor in (4.0, 1.5):
        live.load(materialize(make(method="linear", weight=1.0, context={**YARN, "factor": factor}), sources), model)
        assert not logits(model).equal(before)

    live.load(plain, model)
    assert logits(model).equal(before)
    assert model.config.max_position_embeddings == 64


def test_a_model_built_for_an_extended_candidate_takes_a_plain_one(make, family, tmp_path):
    plain = materialize(make(**TIES), Sources())
    model = live.module(materialize(make(**TIES, context=YARN), Sources()).config)
    live.load(plain, model)

    assert logits(model).equal(logits(from_disk(plain, tmp_path / "model")))


def test_a_bfloat16_module_is_the_model_loaded_in_bfloat16(make, family, tmp_path):
    candidate = materialize(make(**TIES, context=YARN), Sources())
    model = live.module(base_config(family), torch.bfloat16)
    live.load(candidate, model)
    written = AutoModelForCausalLM.from_pretrained(save(candidate, tmp_path / "model"), dtype=torch.bfloat16)

    assert logits(model).equal(logits(written))


def test_a_tied_model_has_one_matrix_for_both_ends(make, family):
    model = live.module(base_config(family, "tied-"))
    live.load(materialize(make(prefix="tied-", **TIES), Sources()), model)

    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_snapshot_saves_what_training_made_of_it(make, family, tmp_path):
    candidate = materialize(make(**TIES), Sources())
    model = live.module(base_config(family))
    live.load(candidate, model)
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)

    healed = live.snapshot(model, candidate, "healed")
    live.load(healed, model)
    assert healed.manifest == candidate.manifest
    assert logits(model).equal(logits(from_disk(healed, tmp_path / "model")))
    assert dict(healed.weights)["model.norm.weight"].mean() > dict(candidate.weights)["model.norm.weight"].mean() + 0.9


def without(name):
    return lambda manifest: {n: info for n, info in manifest.items() if n != name}


def having(name, info):
    return lambda manifest: {**manifest, name: info}


MISFITS = {
    "lacking": (without("model.norm.weight"), "lacks 'model.norm.weight', which the live model has"),
    "unknown": (having("ghost", TensorInfo("F32", (1,))), "'ghost' has no place in the live model"),
    "shape": (
        having("lm_head.weight", TensorInfo("BF16", (41, 64))),
        r"'lm_head.weight' has the shape \[41, 64\], .* \[40, 64\]",
    ),
    "dtype": (having("lm_head.weight", TensorInfo("I8", (40, 64))), "'lm_head.weight' has the dtype I8, the live model"),
}


@pytest.mark.parametrize("fault", MISFITS)
def test_a_candidate_that_does_not_match_is_refused_before_a_tensor_is_written(fault, make, family):
    change, words = MISFITS[fault]
    model = live.module(base_config(family))
    candidate = materialize(make(**TIES), Sources())
    live.load(candidate, model)
    before = logits(model)
    other = materialize(make(method="linear", weight=1.0, context=YARN), Sources())

    with pytest.raises(CheckpointError, match=words):
        live.load(dataclasses.replace(other, manifest=change(other.manifest)), model)
    assert logits(model).equal(before)


def test_a_candidate_of_another_config_is_refused(make, family):
    candidate = materialize(make(**TIES), Sources())
    model = live.module(base_config(family))

    with pytest.raises(CheckpointError, match=r"rms_norm_eps is 0.5 in its config and 1e-06 in the live model"):
        live.load(dataclasses.replace(candidate, config={**candidate.config, "rms_norm_eps": 0.5}), model)


def test_weights_without_a_config_have_no_live_module():
    with pytest.raises(CheckpointError, match=r"config.json: has no 'model_type'"):
        live.module(Candidate.of({}, {"w": torch.zeros(1)}, "").config)
