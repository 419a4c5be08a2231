"""Vocabularies aligned by token: each row is looked up here by name, one after the other, in plain Python."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.candidate import vocab
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.merge import dry_run, merge
from evomerge.candidate.stream import Sources, materialize
from evomerge.document import Place
from evomerge.errors import CheckpointError, DocumentError, RecipeError
from evomerge.recipe import Recipe
from evomerge.space import Space
from tests.candidate.conftest import WORDS, llama, write_tokenizer

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BASE = WORDS[:36]
VOCABULARIES = {
    "base": BASE,
    "math": [*BASE, "<calc>", "<both>"],
    "code": ["<both>", *reversed(BASE), "<code>", "<twice>"],  # the same tokens at other places
    "chat": [*BASE[:30], "<twice>"],  # lacks some of the base's
}
ROWS = {"base": 40, "math": 40, "code": 39, "chat": 32}  # some are padded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Fine-tunes of one model with vocabularies of their own: a token's row is the base's with a little noise."""
    root = tmp_path_factory.mktemp("vocabularies")
    base = llama(0, vocab_size=ROWS["base"]).double()
    for seed, (name, words) in enumerate(VOCABULARIES.items()):
        model = llama(0, vocab_size=ROWS[name]).double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key not in (EMBED, HEAD):
                    parameter.copy_(base.get_parameter(key))
                for row, word in enumerate(words if key in (EMBED, HEAD) and seed else ()):
                    if word in BASE:
                        parameter[row] = base.get_parameter(key)[BASE.index(word)]
                parameter.add_(0.01 * bool(seed) * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        model.save_pretrained(root / name)
        write_tokenizer(root / name, words)
    return root


def recipe(folder, tokenizer, sources=("math", "code", "chat"), rules=None):
    rules = rules or [{"match": "*", "method": "task_arithmetic", "weight": 0.5}]
    data = {"base": "base", "sources": {name: name for name in sources}, "rules": rules, "tokenizer": tokenizer}
    return Recipe.from_data(data, Place("test"), folder)


def rows_of(folder, name):
    """Of each tensor with rows for tokens, the row of each token of a model."""
    tensors = load_file(folder / name / "model.safetensors")
    return {key: {word: tensors[key][i] for i, word in enumerate(VOCABULARIES[name])} for key in (EMBED, HEAD)}


def added(base, sources, token):
    """base + ½ Σ (source - base) of a token, in plain Python; a row that is not there is the default one."""
    everyone = [base, *sources]
    have = [rows[token] for rows in everyone if token in rows]
    default = base[token] if token in base else sum(have) / len(have)
    first, *rest = [rows.get(token, default) for rows in everyone]
    return first + 0.5 * sum(row - first for row in rest)


@pytest.mark.parametrize("key", [EMBED, HEAD])
def test_a_union_has_every_token_and_each_row_is_that_of_its_token(key, folder, tmp_path):
    out = merge(recipe(folder, "union"), tmp_path / "out")

    ids = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    merged = load_file(out / "model.safetensors")[key]
    base, *sources = (rows_of(folder, name)[key] for name in VOCABULARIES)
    assert ids.keys() == {word for words in VOCABULARIES.values() for word in words}
    assert {word: ids[word] for word in BASE} == {word: i for i, word in enumerate(BASE)}
    for token, row in ids.items():
        assert_close(merged[row], added(base, sources, token), rtol=0, atol=1e-14)


def test_the_written_model_loads_and_reads_the_new_tokens(folder, tmp_path):
    out = merge(recipe(folder, {"source": "union", "pad_to_multiple_of": 16}), tmp_path / "out")

    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 48
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("w1 w2")) == ["w1", "w2"]
    assert (
        tokenizer.convert_tokens_to_ids("<calc>") == json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]["<calc>"]
    )


def test_padding_is_kept_and_what_the_multiple_adds_is_the_mean(folder):
    asked = recipe(folder, {"source": "base", "pad_to_multiple_of": 32}, sources=("math",))

    merged = dict(materialize(asked, Sources()).weights)[EMBED]

    base, math = (load_file(folder / name / "model.safetensors")[EMBED] for name in ("base", "math"))
    assert merged.shape == (64, 64)
    assert_close(merged[38:40], base[38:40] + 0.5 * (math[38:40] - base[38:40]), rtol=0, atol=1e-15)  # padding in both
    assert_close(merged[36:38], base[36:38], rtol=0, atol=1e-15)  # tokens in math: nothing of theirs belongs to padding
    assert_close(merged[40:], merged[:40].mean(0).expand(24, 64), rtol=0, atol=1e-14)


def test_the_vocabulary_of_a_source_may_be_kept(folder, tmp_path):
    out = merge(recipe(folder, "code"), tmp_path / "out")

    ids = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    merged = load_file(out / "model.safetensors")[EMBED]
    base, *sources = (rows_of(folder, name)[EMBED] for name in VOCABULARIES)
    assert ids == {word: i for i, word in enumerate(VOCABULARIES["code"])}
    assert (out / "tokenizer.json").read_bytes() == (folder / "code" / "tokenizer.json").read_bytes()
    for token, row in ids.items():
        assert_close(merged[row], added(base, sources, token), rtol=0, atol=1e-14)


@pytest.mark.parametrize("force", [False, True])
def test_a_token_may_be_given_the_row_of_a_model(force, folder):
    tokens = {"<both>": {"source": "code", "force": force}, "w3": {"source": "math", "force": force}}
    asked = recipe(folder, {"source": "union", "tokens": tokens})
    sources = Sources()

    merged = dict(materialize(asked, sources).weights)[EMBED]

    ids = sources.checkpoint(sources.seen(asked).base.location).alignment.tokens.ids
    base, math, code, chat = (rows_of(folder, name)[EMBED] for name in VOCABULARIES)
    both, known = merged[ids["<both>"]], merged[ids["w3"]]
    if force:
        assert torch.equal(both, code["<both>"])
        assert torch.equal(known, math["w3"])
    else:  # math has it; base, code and chat have code's
        assert_close(both, code["<both>"] + 0.5 * (math["<both>"] - code["<both>"]), rtol=0, atol=1e-15)
        assert_close(known, base["w3"] + 0.5 * sum(rows["w3"] - base["w3"] for rows in (math, code, chat)), rtol=0, atol=1e-15)


def test_a_new_token_may_begin_as_another_token_as_a_row_or_as_nothing(folder):
    tokens = {
        "<new>": {"source": {"kind": "model_token", "model": "math", "token": "<calc>"}},
        "<row>": {"source": {"kind": "model_token", "model": "code", "token_id": 5}},
        "<none>": {"source": {"kind": "zero"}},
    }
    asked, sources = recipe(folder, {"source": "base", "tokens": tokens}), Sources()

    merged = dict(materialize(asked, sources).weights)[EMBED]

    ids = sources.checkpoint(sources.seen(asked).base.location).alignment.tokens.ids
    assert_close(merged[ids["<new>"]], rows_of(folder, "math")[EMBED]["<calc>"], rtol=0, atol=1e-15)
    assert_close(merged[ids["<row>"]], load_file(folder / "code" / "model.safetensors")[EMBED][5], rtol=0, atol=1e-15)
    assert not merged[ids["<none>"]].any()
    assert Recipe.from_data(asked.to_data(), Place("again")) == asked


def test_a_dry_run_knows_the_new_rows(folder):
    plan = dry_run(recipe(folder, "union"))

    assert plan.manifest[EMBED].shape == plan.manifest[HEAD].shape == (40, 64)
    assert plan.config["vocab_size"] == 40


def test_without_means_a_bfloat16_row_stays_as_it_is(folder, tmp_path):
    for name in ("base", "math"):
        shutil.copytree(folder / name, tmp_path / name)
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.bfloat16).save_pretrained(tmp_path / name)
    asked, sources = recipe(tmp_path, "union", sources=("math",)), Sources()

    seen = sources.checkpoint(sources.seen(asked).sources["math"].location)

    assert seen.read(EMBED).dtype == torch.bfloat16
    assert torch.equal(seen.read(EMBED)[36:38], Checkpoint.open(tmp_path / "math").read(EMBED)[36:38])


def test_models_trained_apart_are_refused_with_the_reason(tmp_path):
    """As two Llamas of one shape on the same texts, each with a vocabulary of its own: their common tokens point elsewhere."""
    for seed, (name, words) in enumerate({"base": BASE, "math": WORDS}.items()):
        llama(seed, tied=True, vocab_size=len(words)).to(torch.bfloat16).save_pretrained(tmp_path / name)
        write_tokenizer(tmp_path / name, words)

    with pytest.raises(CheckpointError, match=r"another tokenizer|vocabulary of 40 tokens.*tokenizer: union"):
        dry_run(recipe(tmp_path, None, sources=("math",)))
    with pytest.raises(CheckpointError, match=r"source 'math' is of another family .* of 36 tokens .* \(median cosine") as caught:
        merge(recipe(tmp_path, "union", sources=("math",)), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_tokenizers_of_different_kinds_are_of_different_families(folder, tmp_path):
    for name in ("base", "math"):
        shutil.copytree(folder / name, tmp_path / name)
    file = tmp_path / "math" / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"] = {"type": "BPE", "vocab": data["model"]["vocab"], "merges": []}
    file.write_text(json.dumps(data))

    with pytest.raises(
        CheckpointError, match=r"tokenizer of 'math' is a BPE, that of the base a WordLevel: .* different families"
    ):
        dry_run(recipe(tmp_path, "union", sources=("math",)))


def test_the_pieces_and_merges_of_an_extended_vocabulary_come_after_the_bases():
    def bpe(vocabulary, merges):
        return {"model": {"type": "BPE", "vocab": {piece: i for i, piece in enumerate(vocabulary)}, "merges": merges}}

    base = vocab.Tokens(bpe("ab", []), {"a": 0, "b": 1})
    data = bpe(["b", "a", "ab", "aba"], ["a b", ["ab", "a"]]) | {"added_tokens": [{"id": 4, "content": "<x>", "special": True}]}
    other = vocab.Tokens(data, {"b": 0, "a": 1, "ab": 2, "aba": 3, "<x>": 4})

    joined = vocab.union(base, {"other": other})

    assert joined.ids == {"a": 0, "b": 1, "ab": 2, "aba": 3, "<x>": 4}
    tokenizer = Tokenizer.from_str(vocab.written(joined))
    assert tokenizer.encode("abab<x>b").tokens == ["ab", "ab", "<x>", "b"]
    assert tokenizer.encode("aba").tokens == ["aba"]


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        ("unoin", "'unoin' is not known; did you mean 'union'"),
        ({"source": "base", "token": {}}, "unknown key 'token'; did you mean 'tokens'"),
        ({"source": "base", "tokens": {"w1": {"source": "mth"}}}, "tokens.w1.source: 'mth' is not known; did you mean 'math'"),
        ({"source": "base", "tokens": {"w1": {"source": {"kind": "model_token", "model": "math"}}}}, "either a `token` or a"),
        ({"source": "base", "pad_to_multiple_of": 0}, "pad_to_multiple_of: 0 is outside"),
    ],
)
def test_a_tokenizer_block_that_says_nothing_sensible_is_refused(tokenizer, words, folder):
    with pytest.raises((DocumentError, RecipeError), match=words):
        recipe(folder, tokenizer)


def test_a_token_that_its_model_has_not_is_named(folder):
    with pytest.raises(RecipeError, match=r"tokenizer.tokens.<calc>: 'base' has no token '<calc>'; name a model that has it"):
        dry_run(recipe(folder, {"source": "union", "tokens": {"<calc>": {"source": "base"}}}))


def test_a_model_without_tokenizer_json_is_named(folder, tmp_path):
    for name in ("base", "math"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "math" / "tokenizer.json").unlink()

    with pytest.raises(CheckpointError, match=r"math: has no tokenizer.json, by which vocabularies are aligned; save"):
        dry_run(recipe(tmp_path, "base", sources=("math",)))


def test_a_search_takes_one_vocabulary(folder):
    data = {"base": "base", "sources": {"math": "math"}, "rules": [{"match": "*", "method": "linear", "weight": 1}]}

    with pytest.raises(RecipeError, match="tokenizer: a search scores every candidate with the base's tokenizer"):
        Space.from_data({**data, "tokenizer": "union"}, Place("test"), folder)
