"""Files of mergekit with several modules: each tower by models and parameters of its own, in float64 to a relative 1e-12."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from evomerge.candidate.merge import merge
from evomerge.candidate.stack import is_embedding, numbered
from evomerge.candidate.stream import Sources, materialize
from evomerge.document import dump_yaml
from evomerge.errors import RecipeError
from evomerge.mergekit import convert, read_recipe
from tests.oracle.test_interchange import at_the_end
from tests.oracle.test_whole_models import of_mergekit, same

TEXT = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "pad_token_id": 0}
EYES = {"hidden_size": 32, "intermediate_size": 48, "patch_size": 4}


def qwen():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    eyes = {**EYES, "depth": 3, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=eyes, tie_word_embeddings=False)
    )


def llava():
    eyes = CLIPVisionConfig(**EYES, num_hidden_layers=3, num_attention_heads=2, image_size=8, projection_dim=32)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=eyes, text_config=LlamaConfig(**TEXT), image_token_index=39, vision_feature_layer=-1)
    )


def t5():
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=40, **shape, feed_forward_proj="gated-gelu", decoder_start_token_id=0))


# of each family the modules with the gradients that each has; mergekit names llava's by what comes before the numbers
WEIGHTS = {
    qwen: {"text_decoder": [0.2, 0.9], "multi_modal_projector": 0.5, "vision_tower": [0.7, 0.1, 0.3]},
    llava: {"default": 0.5, "model.language_model.layers": [0.2, 0.9], "model.vision_tower.encoder.layers": [0.7, 0.1, 0.3]},
    t5: {"decoder": [0.2, 0.9], "encoder": [0.7, 0.1, 0.3], "shared": 0.5},
}
MLP = {qwen: "mlp", llava: "mlp", t5: "Dense"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    for family in WEIGHTS:
        model = family().double()
        for seed, name in enumerate(("base", "one", "two")):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.02 * bool(seed) * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            model.save_pretrained(root / family.__name__ / name)
            if family is llava:  # mergekit leaves out what a file has under another name than transformers in memory
                file = root / "llava" / name / "model.safetensors"
                save_file({in_memory(each): tensor for each, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return root


def config_of(models, family):
    """TIES by module: weights and filters of its own, and one model less in one of them."""
    root, modules = models / family.__name__, {}
    for i, (name, weight) in enumerate(WEIGHTS[family].items()):
        one = {"model": str(root / "one"), "parameters": {"weight": weight, "density": 0.3 + 0.2 * i}}
        two = {"model": str(root / "two"), "parameters": {"weight": [{"filter": MLP[family], "value": 0.3}, {"value": 0.6}]}}
        modules[name] = {"models": [one, two][: 2 - (i == 1)], "parameters": {"lambda": 1.0 + i / 4}}
    top = {"normalize": [{"filter": "bias", "value": False}, {"value": True}], "density": 0.8, "lambda": 3.0}
    top = {**top, "normalize": True} if family is t5 else top
    return {"merge_method": "ties", "base_model": str(root / "base"), "modules": modules, "parameters": top, "dtype": "float64"}


def in_memory(name):
    """What transformers 5 calls a tensor of llava's."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1)
    return name.removeprefix("language_model.") if "lm_head" in name else f"model.{name}"


@pytest.mark.parametrize("family", WEIGHTS, ids=lambda family: family.__name__)
def test_each_module_is_merged_as_the_file_says(models, family, tmp_path):
    config = config_of(models, family)
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))

    recipe, notes = read_recipe(file)
    merged = dict(materialize(recipe, Sources()).weights)

    expected, last = (of_mergekit(None, each, tmp_path / f"out{i}") for i, each in enumerate((config, at_the_end(config))))
    behind = [name for name in expected if not numbered(name) and not is_embedding(name)]
    same(merged, expected | {name: last[name] for name in behind})
    assert any(note.startswith("modules: by the names of tensors") for note in notes)
    file.write_text(dump_yaml({**config, "modules": dict([*config["modules"].items()][:-1])}))
    with pytest.raises(RecipeError, match="mergekit writes no tensor of a module that is not named"):
        read_recipe(file)


# of each family the towers that can be stacked, with what mergekit counts their layers by in the config
STACKS = {
    (qwen, "text_decoder"): ("text_config", "num_hidden_layers"), (qwen, "vision_tower"): ("vision_config", "depth"),
    (llava, "model.language_model.layers"): ("text_config", "num_hidden_layers"),
    (llava, "model.vision_tower.encoder.layers"): ("vision_config", "num_hidden_layers"),
    (t5, "encoder"): ("", "num_layers"), (t5, "decoder"): ("", "num_decoder_layers"),
}  # fmt: skip


@pytest.mark.parametrize(("family", "module"), STACKS, ids=lambda each: getattr(each, "__name__", each))
def test_a_stack_in_one_module_beside_merges_of_the_others(models, family, module, tmp_path):
    config = config_of(models, family)
    config["modules"][module] = {
        "slices": [
            {"sources": [{"model": str(models / family.__name__ / name), "layer_range": [first, first + 2]} for name in part]}
            for first, part in ((0, ("base", "one", "two")), (0, ("base", "two")), (int(family is not t5), ("base", "one")))
        ],
        "parameters": {"weight": [0.3, 0.8], "density": 0.6},
    }
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))

    recipe, _ = read_recipe(file)
    merge(recipe, tmp_path / "ours")
    merged = load_file(tmp_path / "ours" / "model.safetensors")

    expected, last = (of_mergekit(None, each, tmp_path / f"out{i}") for i, each in enumerate((config, at_the_end(config))))
    behind = [name for name in expected if not numbered(name) and not is_embedding(name)]
    same(merged, expected | {name: last[name] for name in behind})
    assert layers_of(STACKS[family, module], tmp_path / "ours") == 6
    _, info = type(family()).from_pretrained(tmp_path / "ours", output_loading_info=True)
    copies = {name for name in info["unexpected_keys"] if "relative_attention_bias" in name}  # of T5's first layer, as mergekit
    assert not info["missing_keys"] | info["unexpected_keys"] - copies
    assert not info["mismatched_keys"]
    back = convert(file, "evomerge")[0]
    (tmp_path / "ours.yaml").write_text(back)
    (tmp_path / "back.yaml").write_text(convert(tmp_path / "ours.yaml", "mergekit")[0])
    assert read_recipe(tmp_path / "back.yaml")[0] == recipe


def layers_of(keys, folder):
    config = json.loads((folder / "config.json").read_text())
    return (config[keys[0]] if keys[0] else config)[keys[1]]


@pytest.mark.parametrize("family", [qwen, t5], ids=lambda family: family.__name__)
def test_modules_become_filters_on_the_way_back(models, family, tmp_path):
    config = config_of(models, family)
    config["parameters"]["normalize"] = True
    for module in config["modules"].values():
        for entry in module["models"]:
            entry["parameters"]["weight"] = 0.4
    there, back = tmp_path / "there.yaml", tmp_path / "back.yaml"
    there.write_text(dump_yaml(config))
    (tmp_path / "ours.yaml").write_text(convert(there, "evomerge")[0])
    back.write_text(convert(tmp_path / "ours.yaml", "mergekit")[0])

    again = of_mergekit(None, yaml.safe_load(back.read_text()), tmp_path / "again")

    same(again, of_mergekit(None, config, tmp_path / "first"))
