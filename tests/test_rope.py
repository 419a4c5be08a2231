"""Context extension against transformers' own tables, and the config that transformers makes of ours."""

import logging
import math

import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from evomerge import rope
from evomerge.errors import RecipeError
from evomerge.recipe import Context

CONFIG = {
    "model_type": "llama", "hidden_size": 128, "num_attention_heads": 4, "head_dim": 32, "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


def theirs(config: dict) -> tuple[torch.Tensor, float]:
    embedding = LlamaRotaryEmbedding(AutoConfig.for_model(**config))
    return embedding.inv_freq, embedding.attention_scaling


GRID = [
    Context("linear", 4.0),
    Context("linear", 1.5),
    Context("ntk", 2.0),
    Context("ntk", 7.25),
    Context("yarn", 2.0),
    Context("yarn", 8.0),
    Context("yarn", 1.25, beta_fast=8.0, beta_slow=0.25),
    Context("yarn", 4.0, beta_fast=64.0, beta_slow=4.0),
    Context("yarn", 4.0, beta_fast=1.02, beta_slow=1.01),
    Context("yarn", 4.0, attention_factor=1.0),
    Context("yarn", 4.0, beta_slow=0.0),
]


@pytest.mark.parametrize("original", [64, 128, 256, 4096])
@pytest.mark.parametrize("context", GRID, ids=str)
def test_the_tables_are_those_of_transformers(context, original):
    config = rope.extend({**CONFIG, "max_position_embeddings": original}, context)
    ours, attention = rope.inverse_frequencies(config)
    expected, scaling = theirs(config)

    torch.testing.assert_close(torch.tensor(ours), expected, rtol=2e-6, atol=0)
    assert attention == pytest.approx(scaling, rel=1e-12)


@pytest.mark.parametrize(
    "parameters",
    [
        {"truncate": False},
        {"truncate": False, "beta_fast": 3.0, "beta_slow": 3.0},  # low == high
        {"mscale": 1.0, "mscale_all_dim": 0.707},
        {"beta_fast": 0.001, "beta_slow": 0.0001},  # both clamped to D - 1
        {"original_max_position_embeddings": 40},  # shorter than any pair needs to turn 32 times
    ],
    ids=str,
)
def test_the_traps_of_yarn_are_those_of_transformers(parameters):
    yarn = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 256, **parameters}
    config = {**CONFIG, "max_position_embeddings": 1024, "rope_parameters": yarn}

    ours, attention = rope.inverse_frequencies(config)
    expected, scaling = theirs(config)

    torch.testing.assert_close(torch.tensor(ours), expected, rtol=2e-6, atol=0)
    assert attention == pytest.approx(scaling, rel=1e-12)


def test_without_extension_the_tables_are_those_of_transformers():
    ours, attention = rope.inverse_frequencies(CONFIG)

    torch.testing.assert_close(torch.tensor(ours), theirs(CONFIG)[0], rtol=2e-6, atol=0)
    assert attention == 1.0


def test_half_a_head_may_be_turned():
    config = {**CONFIG, "partial_rotary_factor": 0.5}

    assert rope.rotary_dim(config) == 16
    assert len(rope.inverse_frequencies(config)[0]) == 8


def test_yarn_keeps_the_fast_pairs_and_interpolates_the_slow_ones():
    config = rope.extend({**CONFIG, "max_position_embeddings": 4096}, Context("yarn", 4.0))

    kept, _ = rope.inverse_frequencies(config)

    assert kept[0] == 1.0
    assert kept[-1] == pytest.approx(10000 ** (-30 / 32) / 4)


def test_ntk_is_a_changed_base():
    config = rope.extend(CONFIG, Context("ntk", 2.0))

    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0 * 2 ** (32 / 30)}
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert "rope_scaling" not in config


def test_factor_one_changes_nothing():
    assert rope.extend(CONFIG, Context("yarn", 1.0)) == CONFIG
    assert rope.extend(CONFIG, Context("yarn", 1.001)) == CONFIG


def test_the_new_length_is_whole_and_the_factor_exactly_the_ratio():
    config = rope.extend(CONFIG, Context("yarn", 2.37))

    assert config["max_position_embeddings"] == 607
    assert config["rope_parameters"]["factor"] == 607 / 256
    assert config["rope_parameters"]["original_max_position_embeddings"] == 256


def test_transformers_reads_the_extended_config_without_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    config = AutoConfig.for_model(**rope.extend(CONFIG, Context("yarn", 2.37, beta_fast=16.0, attention_factor=1.1)))

    assert config.rope_parameters["beta_fast"] == 16.0
    assert config.rope_parameters["attention_factor"] == 1.1
    assert not caplog.records


@pytest.mark.parametrize("context", [Context("linear", 2.0), Context("ntk", 2.0), Context("yarn", 2.0)], ids=str)
def test_old_keys_agree_with_the_new_so_that_old_readers_see_the_same(context):
    old = {key: value for key, value in CONFIG.items() if key != "rope_parameters"} | {"rope_theta": 5000.0, "rope_scaling": None}
    config = rope.extend(old, context)
    without_new = {key: value for key, value in config.items() if key != "rope_parameters"}

    assert theirs(config)[0].equal(theirs(without_new)[0])
    assert LlamaConfig(**config).rope_parameters == LlamaConfig(**without_new).rope_parameters == config["rope_parameters"]


def test_the_given_config_is_not_changed():
    before = {**CONFIG, "rope_parameters": dict(CONFIG["rope_parameters"])}

    rope.extend(CONFIG, Context("yarn", 2.0))

    assert before == CONFIG


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
            "extended already .rope_type llama3.; leave `context` out",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "extended already .rope_type linear."),
        ({"max_position_embeddings": None}, "no 'max_position_embeddings'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "for each kind of layer"),
    ],
)
def test_what_cannot_be_extended_is_refused(change, words):
    with pytest.raises(RecipeError, match=words):
        rope.extend({**CONFIG, **change}, Context("yarn", 2.0))


def test_the_attention_factor_of_yarn_is_the_papers():
    assert rope.inverse_frequencies(rope.extend(CONFIG, Context("yarn", 4.0)))[1] == pytest.approx(0.1 * math.log(4) + 1)
