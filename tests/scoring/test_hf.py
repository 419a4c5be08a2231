"""The live scorer gives what lm-eval's own HFLM and evaluator give, document by document, only sooner."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.stream import Candidate
from evomerge.errors import CheckpointError, ScoringError
from evomerge.scoring import ScoringConfig, Suite, make_scorer
from evomerge.scoring.forward import Forward, usable
from evomerge.scoring.hf import LiveLM
from evomerge.scoring.prefixes import WORTH, shared_prefixes

from .conftest import CONTEXT, DOCUMENTS, VOCABULARY, make_model

TASKS = ("letter", "words", "write", "letter_long", "words_long", "write_long")
CHOICE_TASKS = tuple(task for task in TASKS if not task.startswith("write"))
NO_LIMIT = 1 << 30


class Ask:
    """What an LM method needs of an Instance."""

    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture(scope="module")
def suite(task_dir) -> Suite:
    return Suite(dict.fromkeys(TASKS, 1.0), include=(str(task_dir),))


@pytest.fixture
def scorer(suite, model_dir, module):
    return make_scorer(ScoringConfig(batch=300), suite, model=model_dir, module=module)


@pytest.fixture(scope="module")
def reference(suite, task_dir, module, tokenizer) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's own samples: evaluator.evaluate on a plain HFLM, tasks loaded from absolute paths."""
    data = [{"test": str(task_dir / f"{task}.jsonl")} for task in TASKS]
    manager = TaskManager(include_path=str(task_dir), include_defaults=False)
    configs = [
        {**manager.task_index[task].cfg, "dataset_kwargs": {"data_files": files, "cache_dir": str(task_dir / "cache")}}
        for task, files in zip(TASKS, data, strict=True)
    ]
    lm = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=7, max_length=NO_LIMIT)
    found = evaluator.evaluate(lm=lm, task_dict=manager.load(configs), bootstrap_iters=0)
    return found["samples"]


@pytest.mark.parametrize("task", TASKS)
def test_every_row_is_that_of_lm_eval(task, scorer, reference) -> None:
    rows = scorer.score({task: range(DOCUMENTS)}).task(task)
    metric = "exact_match" if task.startswith("write") else "acc"

    assert {doc: row.value for doc, row in rows.items()} == {s["doc_id"]: s[metric] for s in reference[task]}
    assert 0 < sum(row.value for row in rows.values()) < DOCUMENTS
    for sample in reference[task]:
        if metric == "acc":
            logs = [log for log, _ in sample["filtered_resps"]]
            margin = logs[sample["target"]] - max(log for i, log in enumerate(logs) if i != sample["target"])
            assert rows[sample["doc_id"]].margin == pytest.approx(margin, abs=1e-5)
        else:
            assert rows[sample["doc_id"]].response == sample["resps"][0][0]


def test_a_margin_is_that_of_a_computation_by_hand(scorer, module, tokenizer, task_dir) -> None:
    document = scorer.harness.documents["words_long"][5]
    prompt = tokenizer(document["prompt"])["input_ids"]
    logs = []
    for choice in document["choices"]:
        ids = torch.tensor([[*prompt, *tokenizer(choice)["input_ids"]]])
        with torch.no_grad():
            predicted = module(ids).logits[0].log_softmax(-1)
        logs.append(sum(float(predicted[at - 1, ids[0, at]]) for at in range(len(prompt), ids.shape[1])))
    gold = logs.pop(document["gold"])

    assert scorer.score({"words_long": [5]}).rows[0].margin == pytest.approx(gold - max(logs), abs=1e-5)


def test_log_likelihoods_are_those_of_hflm_whatever_the_batch(module, tokenizer, scorer) -> None:
    questions = [scorer.harness._question(scorer.lm, task, doc) for task in CHOICE_TASKS for doc in range(DOCUMENTS)]
    requests = [request for question in questions for request in question.requests]
    plain = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=5, max_length=NO_LIMIT).loglikelihood(requests)

    for tokens in (1, 100, 5000):
        found = LiveLM(module, tokenizer, tokens).loglikelihood(requests)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in plain]
        assert [log for log, _ in found] == pytest.approx([log for log, _ in plain], abs=1e-5)


def test_a_prompt_past_the_trained_length_is_read_whole(module, tokenizer) -> None:
    long = "a" + "bc d" * CONTEXT
    ids = tokenizer(long + "x", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = float(module(ids).logits[0, -2].log_softmax(-1)[VOCABULARY["x"]])
        first = int(module(ids[:, :-1]).logits[0, -1].argmax())
    lm = LiveLM(module, tokenizer)

    assert lm.loglikelihood([Ask(long, "x")])[0][0] == pytest.approx(expected, abs=1e-5)
    text = lm.generate_until([Ask(long, {"until": [], "max_gen_toks": 1})])[0]
    assert text == tokenizer.decode([first], skip_special_tokens=True)


@pytest.mark.parametrize("until", [[], ["e"], ["a", "st"], ["\n", "<eos>"]])
@pytest.mark.parametrize("limit", [1, 20])
def test_texts_are_those_of_hflm_with_good_bad_and_no_drafts(until, limit, module, tokenizer) -> None:
    prompts = [f"rank {i} x{'yz' * i}=" for i in range(9)]
    requests = [Ask(prompt, {"until": list(until), "max_gen_toks": limit, "do_sample": False}) for prompt in prompts]
    expected = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=1, max_length=NO_LIMIT).generate_until(
        [Ask(r.args[0], copy.deepcopy(r.args[1])) for r in requests]
    )
    lm = LiveLM(module, tokenizer, 200)
    one_wrong = [text[:3] + "q" + text[4:] for text in expected]

    assert lm.generate_until(requests) == expected
    for drafts in (expected, one_wrong, ["zzz"] * 9, [text + "e" for text in expected], [text[:2] or None for text in expected]):
        assert [answer.text for answer in lm.generate_with_drafts(requests, drafts)] == expected


def test_a_generated_answer_has_a_margin_above_zero_only_where_it_is_right(scorer) -> None:
    rows = scorer.score({"write": range(DOCUMENTS)}).rows
    margins = [row.margin for row in rows if row.margin is not None]

    assert len(margins) > DOCUMENTS / 2
    assert all((row.margin > 0) == (row.value == 1) for row in rows if row.margin is not None)


def test_documents_asked_apart_have_the_rows_of_documents_asked_together(scorer) -> None:
    together = scorer.score({task: range(12) for task in TASKS})
    apart = [scorer.score({task: [doc]}) for task in TASKS for doc in range(12)]

    for row in (row for scores in apart for row in scores.rows):
        twin = together.task(row.task)[row.doc]
        assert (row.value, row.response) == (twin.value, twin.response)
        assert row.margin == pytest.approx(twin.margin, abs=1e-5)


def test_a_new_candidate_is_not_answered_from_the_memory_of_the_last(suite, model_dir, tokenizer) -> None:
    scorer = make_scorer(ScoringConfig(), suite, model=model_dir)
    documents = {task: range(DOCUMENTS) for task in TASKS}
    found = []
    for seed in (0, 1, 0):
        model = make_model(seed)
        scorer.load(Candidate.of(Checkpoint.open(model_dir).config, model.state_dict(), f"seed {seed}"))
        found.append(scorer.score(documents))
        assert found[-1] == make_scorer(ScoringConfig(), suite, model=model_dir, module=model).score(documents)

    assert found[0] == found[2]
    assert sum(a.margin != b.margin for a, b in zip(found[0].rows, found[1].rows, strict=True)) > 100


def test_a_candidate_of_another_depth_is_scored_as_by_a_fresh_scorer(suite, model_dir) -> None:
    scorer = make_scorer(ScoringConfig(), suite, model=model_dir)
    documents = {"letter_long": range(DOCUMENTS)}
    found = []
    for layers in (2, 3, 2):
        model = make_model(0, num_hidden_layers=layers)
        config = {**Checkpoint.open(model_dir).config, "num_hidden_layers": layers}
        config.pop("layer_types", None)
        candidate = Candidate.of(config, model.state_dict(), f"{layers} layers")
        scorer.load(candidate)
        found.append(scorer.score(documents))
        assert found[-1] == make_scorer(ScoringConfig(), suite, model=model_dir, module=model).score(documents)

    assert found[0] == found[2] != found[1]


def test_weights_changed_in_place_are_noticed(suite, model_dir) -> None:
    module = make_model(0)
    scorer = make_scorer(ScoringConfig(), suite, model=model_dir, module=module)
    documents = {"letter_long": range(DOCUMENTS), "write_long": range(DOCUMENTS)}
    scorer.score(documents)
    with torch.no_grad():
        module.model.layers[0].self_attn.v_proj.weight.mul_(0.5)

    fresh = make_scorer(ScoringConfig(), suite, model=model_dir, module=module)
    assert scorer.score(documents) == fresh.score(documents)


def test_a_context_extension_reaches_the_scores(suite, model_dir) -> None:
    config = dict(Checkpoint.open(model_dir).config)
    weights = make_model(0).state_dict()
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": CONTEXT}
    scorer = make_scorer(ScoringConfig(), suite, model=model_dir)
    margins = []
    for candidate in (config, {**config, "rope_parameters": yarn, "max_position_embeddings": 4 * CONTEXT}, config):
        scorer.load(Candidate.of(candidate, weights, "x"))
        margins.append(scorer.score({"letter_long": range(DOCUMENTS)}).margins("letter_long"))

    assert margins[0] == margins[2] != margins[1]


def test_shared_beginnings_are_read_once(scorer, monkeypatch) -> None:
    read: list[int] = []
    hidden = Forward.hidden

    def count(self, tokens, positions, view):
        read.append(tokens.numel())
        return hidden(self, tokens, positions, view)

    scorer.lm  # noqa: B018  the survey of prompts
    monkeypatch.setattr(Forward, "hidden", count)
    scorer.score({"letter_long": range(DOCUMENTS)})
    first = sum(read)
    scorer.score({"write_long": range(DOCUMENTS)})
    prompts = sum(len(document["prompt"]) for document in scorer.harness.documents["letter_long"])

    assert first < prompts / 3
    assert scorer.lm.prefixes.known


def test_the_prefixes_found_save_the_most_tokens() -> None:
    a, b = list(range(1000, 1400)), list(range(2000, 2200))
    apart = [[*a, i, i] for i in range(3)] + [[*b, i, i] for i in range(5)]
    nested = [[*a, *b, i] for i in range(2)] + [[*a, 7, i] for i in range(9)]

    assert sorted(map(len, shared_prefixes(apart))) == [192, 400]
    assert list(map(len, shared_prefixes(nested))) == [400]
    assert shared_prefixes([[1, 2, 3], [1, 2, 4]]) == []
    assert shared_prefixes([list(range(WORTH // 2)), list(range(WORTH // 2))]) == []


SMALL = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": CONTEXT, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "model", "fast"),
    [
        (Qwen2Config(**SMALL), Qwen2ForCausalLM, True),
        (Qwen3Config(**SMALL), Qwen3ForCausalLM, True),
        (MistralConfig(**SMALL, sliding_window=None), MistralForCausalLM, True),
        (MistralConfig(**SMALL, sliding_window=100), MistralForCausalLM, False),
    ],
    ids=["qwen2", "qwen3", "mistral", "mistral with a window"],
)
def test_other_architectures_agree_with_hflm(config, model, fast, tokenizer) -> None:
    torch.manual_seed(0)
    module = model(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    requests = [Ask("abc d" * 30 + f"{i}=", choice) for i in range(6) for choice in ("ab", "ac", "b")]
    texts = [Ask(f"x{i}" * i + "=", {"until": ["e"], "max_gen_toks": 9}) for i in range(1, 6)]
    plain = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=1, max_length=NO_LIMIT)
    expected = plain.loglikelihood(requests)
    written = plain.generate_until([Ask(r.args[0], copy.deepcopy(r.args[1])) for r in texts])
    lm = LiveLM(module, tokenizer)

    assert usable(module) == fast
    assert [log for log, _ in lm.loglikelihood(requests)] == pytest.approx([log for log, _ in expected], abs=2e-5)
    assert lm.generate_until(texts) == written


def test_whole_texts_are_scored_in_windows_of_the_trained_length(module, tokenizer) -> None:
    requests = [Ask("rank abc=d " * 20), Ask("x")]
    plain = HFLM(pretrained=module, tokenizer=tokenizer, batch_size=1)

    expected = plain.loglikelihood_rolling(requests)
    assert LiveLM(module, tokenizer).loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-3)


def test_the_module_is_given_back_as_it_was(scorer, module) -> None:
    scorer.lm  # noqa: B018
    module.train()
    scorer.score({"letter": [0], "write": [0]})

    assert module.training
    assert module.config._attn_implementation == "sdpa"
    assert not any(parameter.is_inference() for parameter in module.parameters())
    module.eval()


def test_a_model_that_gives_nan_is_refused_and_not_called_choice_0(suite, model_dir) -> None:
    module = make_model(0)
    with torch.no_grad():
        module.lm_head.weight[5] = torch.nan

    with pytest.raises(ScoringError, match="letter: the model gives NaN"):
        make_scorer(ScoringConfig(), suite, model=model_dir, module=module).score({"letter": [0]})


def test_without_a_model_the_documents_are_known_and_scoring_is_refused(suite, model_dir, task_dir, tmp_path) -> None:
    scorer = make_scorer(ScoringConfig(), suite, model=model_dir)

    assert {task: len(hashes) for task, hashes in scorer.catalogue().items()} == dict.fromkeys(TASKS, DOCUMENTS)
    with pytest.raises(ScoringError, match="no model is loaded yet"):
        scorer.score({"letter": [0]})
    with pytest.raises(ScoringError, match=r"scoring.device: 'tpu' is not there"):
        make_scorer(ScoringConfig(device="tpu"), suite, model=model_dir)
    lost = make_scorer(ScoringConfig(), suite, model=tmp_path, module=make_model(0))
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded"):
        lost.score({"letter": [0]})
