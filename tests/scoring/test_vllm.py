"""One live engine says of every candidate what a fresh engine and transformers say, and each cure is needed."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from evomerge.candidate import live
from evomerge.candidate.stream import Candidate
from evomerge.errors import CheckpointError, ScoringError
from evomerge.recipe import Context, locate
from evomerge.scoring import Scores, ScoringConfig, Suite, make_scorer, vllm_crossing, vllm_worker
from evomerge.scoring.vllm import VllmScorer
from evomerge.scoring.vllm_engine import Engine
from evomerge.scoring.vllm_worker import CandidateWorker
from tests.scoring.engines import (
    CHARACTERS,
    CONTEXT,
    LONG,
    PROMPTS,
    VOCABULARY,
    build,
    candidate,
    furthest,
    heard,
    of_transformers,
    said_by_vllm,
    spoken,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def folders(place):
    kinds = {"untied": False, "tied": True}
    made = {f"{kind}-{seed}": build(place / f"{kind}-{seed}", seed, tied=tied) for kind, tied in kinds.items() for seed in (0, 1)}
    return {**made, "deeper": build(place / "deeper", 2, tied=False, layers=4)}


@pytest.fixture(scope="module")
def fresh(folders):
    return {name: said_by_vllm(folders[name]) for name in ("untied-1", "tied-1")}


def said(folder: Path, prompts: list[str]) -> list[str]:
    """Greedy text of transformers, one plain pass a token, up to an `a` or a `7`."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for prompt in prompts:
        text = prompt
        while (len(text) < len(prompt) + 24 and text[-1:] not in ("a", "7")) or text == prompt:
            with torch.no_grad():
                best = model(torch.tensor([[VOCABULARY[c] for c in text]])).logits[0, -1, 4:].argmax()
            text += CHARACTERS[int(best)]
        answers.append(text[len(prompt) :].rstrip("a7"))
    return answers


@pytest.fixture(scope="module")
def suite(place, folders):
    """Choices and answers behind prompts of up to 200 characters."""
    draw = random.Random(1)

    def word(low: int, high: int) -> str:
        return "".join(draw.choice(CHARACTERS[2:]) for _ in range(draw.randint(low, high)))

    common = word(150, 150)
    choices = [
        {"prompt": common + word(5, 40), "choices": [word(1, 4) for _ in range(3)], "gold": draw.randrange(3)} for _ in range(20)
    ]
    asked = [word(30, 200) for _ in range(20)]
    own = said(folders["untied-0"], asked)  # so that every other answer is right
    answers = [{"prompt": prompt, "answer": own[i] if i % 2 else word(1, 3)} for i, prompt in enumerate(asked)]
    for name, rows in {"choices": choices, "answers": answers}.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = "dataset_path: json\ntest_split: test\ntarget_delimiter: ''\ndoc_to_text: prompt\nmetadata: {version: 1.0}\n"
    (place / "choices.yaml").write_text(
        f"task: choices\n{shared}dataset_kwargs: {{data_files: {{test: choices.jsonl}}}}\noutput_type: multiple_choice\n"
        "doc_to_target: gold\ndoc_to_choice: choices\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (place / "answers.yaml").write_text(
        f"task: answers\n{shared}dataset_kwargs: {{data_files: {{test: answers.jsonl}}}}\noutput_type: generate_until\n"
        "doc_to_target: answer\ngeneration_kwargs: {until: ['a', '7'], do_sample: false, max_gen_toks: 24}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    return Suite({"choices": 1.0, "answers": 1.0}, include=(str(place),))


@pytest.fixture(scope="module")
def scorer(suite, folders):
    """One scorer for all tests: that they do not disturb each other is the point."""
    made = make_scorer(ScoringConfig(scorer="vllm"), suite, model=folders["untied-0"])
    yield made
    made.close()


# --- candidates


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_after_swaps_the_engine_says_what_a_fresh_one_says(kind, fresh, folders, scorer):
    scorer.load(candidate(folders[f"{kind}-0"]))
    first, starts = spoken(scorer.engine), scorer.starts
    for seed in (1, 0, 1):
        scorer.load(candidate(folders[f"{kind}-{seed}"]))
        found = spoken(scorer.engine)

    assert scorer.starts == starts
    assert found != first
    assert found == fresh[f"{kind}-1"]


@pytest.mark.parametrize("name", ["untied-1", "tied-1"])
def test_log_probabilities_are_those_of_transformers(name, folders, scorer):
    scorer.load(candidate(folders[name]))

    logs, _ = spoken(scorer.engine)

    assert furthest(logs, of_transformers(candidate(folders[name]), PROMPTS)) < 1e-5


def test_another_architecture_starts_another_engine(folders, scorer):
    scorer.load(candidate(folders["untied-0"]))
    starts = scorer.starts
    scorer.load(candidate(folders["deeper"]))

    logs, _ = spoken(scorer.engine)

    assert scorer.starts == starts + 1
    assert furthest(logs, of_transformers(candidate(folders["deeper"]), PROMPTS)) < 1e-5


def test_candidates_come_by_the_weight_transfer_of_vllm_where_it_is(folders, scorer, monkeypatch):
    from vllm.entrypoints.rl.offline import RLOfflineMixin

    scorer.load(candidate(folders["untied-0"]))

    assert scorer.engine._transfers
    assert vllm_worker.register_transfer()
    monkeypatch.delattr(RLOfflineMixin, "update_weights")
    assert not vllm_worker.register_transfer()


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_without_it_they_come_by_the_workers_own_reload_and_say_the_same(kind, fresh, folders, suite, monkeypatch):
    monkeypatch.setattr(vllm_worker, "register_transfer", lambda: False)
    made = make_scorer(ScoringConfig(scorer="vllm"), suite, model=folders["untied-0"])
    for seed in (0, 1):
        made.load(candidate(folders[f"{kind}-{seed}"]))

    assert not made.engine._transfers
    assert made.starts == 1
    assert spoken(made.engine) == fresh[f"{kind}-1"]
    made.close()


# --- the cures, each taken out


def test_a_tied_head_would_stay_stale(monkeypatch, fresh, folders, scorer):
    scorer.load(candidate(folders["tied-0"]))
    monkeypatch.setattr(CandidateWorker, "repack_tied_heads", lambda self: None)
    scorer.load(candidate(folders["tied-1"]))

    logs, _ = spoken(scorer.engine)

    assert furthest(logs, fresh["tied-1"][0]) > 0.1


def test_a_prefix_would_be_remembered(monkeypatch, fresh, folders, scorer):
    scorer.load(candidate(folders["untied-0"]))
    spoken(scorer.engine)
    monkeypatch.setattr(Engine, "forget", lambda self: None)
    scorer.load(candidate(folders["untied-1"]))

    assert spoken(scorer.engine)[1] != fresh["untied-1"][1]


def of_nan(whole: Candidate) -> Candidate:
    return Candidate.of(whole.config, {name: torch.full_like(tensor, math.nan) for name, tensor in whole.weights}, "nan")


def test_a_candidate_of_nan_leaves_none_behind(fresh, folders, scorer):
    scorer.load(of_nan(candidate(folders["untied-0"])))
    nothing, _ = spoken(scorer.engine)
    scorer.load(candidate(folders["untied-1"]))

    assert all(math.isnan(log) for log in nothing[0])
    assert spoken(scorer.engine) == fresh["untied-1"]


def test_a_candidate_of_nan_would_spoil_the_next(monkeypatch, folders, scorer):
    scorer.load(of_nan(candidate(folders["untied-0"])))
    spoken(scorer.engine)
    monkeypatch.setattr(CandidateWorker, "wipe_cache", lambda self: None)
    scorer.load(candidate(folders["untied-1"]))

    assert any(math.isnan(log) for logs in spoken(scorer.engine)[0] for log in logs)


NAME = "model.layers.1.mlp.down_proj.weight"


def without(whole: Candidate, name: str = NAME) -> Candidate:
    return Candidate.of(whole.config, {key: tensor for key, tensor in whole.weights if key != name}, "incomplete")


def test_a_missing_tensor_is_refused_before_any_is_loaded(folders, scorer):
    scorer.load(candidate(folders["untied-0"]))
    before, starts = spoken(scorer.engine), scorer.starts

    with pytest.raises(CheckpointError, match=f"lacks '{NAME}'"):
        scorer.load(without(candidate(folders["untied-1"])))

    assert spoken(scorer.engine) == before
    assert scorer.starts == starts


def test_a_missing_tensor_would_go_unnoticed(monkeypatch, fresh, folders, scorer):
    scorer.load(candidate(folders["untied-0"]))
    monkeypatch.setattr(live, "check", lambda candidate, model: None)
    scorer.load(without(candidate(folders["untied-1"])))

    assert furthest(spoken(scorer.engine)[0], fresh["untied-1"][0]) > 0.1


def breaking(whole: Candidate) -> Candidate:
    """A stream that ends in the middle of a layer."""

    class Stream:
        def __iter__(self):
            yield from list(whole.weights)[:7]
            raise OSError("the disk is gone")

    return Candidate(whole.config, Stream(), "broken", whole.manifest)


def unlike_its_manifest(whole: Candidate) -> Candidate:
    wrong = [(name, tensor[:32] if name == NAME else tensor) for name, tensor in whole.weights]
    return Candidate(whole.config, wrong, "wrong", whole.manifest)


@pytest.mark.parametrize(("spoil", "error"), [(breaking, OSError), (unlike_its_manifest, CheckpointError)])
def test_a_poisoned_engine_is_started_anew(spoil, error, fresh, folders, scorer):
    scorer.load(candidate(folders["untied-0"]))
    starts = scorer.starts
    with pytest.raises(error):
        scorer.load(spoil(candidate(folders["untied-1"])))
    scorer.load(candidate(folders["untied-1"]))

    assert spoken(scorer.engine) == fresh["untied-1"]
    assert scorer.starts == starts + 1


def test_a_poisoned_engine_would_stay_poisoned(monkeypatch, folders, scorer):
    scorer.load(candidate(folders["untied-0"]))
    with monkeypatch.context() as patch:
        patch.setattr(VllmScorer, "_stop", lambda self: None)
        patch.setattr(vllm_crossing, "announced", lambda candidate: candidate.weights)
        with pytest.raises(AssertionError):  # vLLM's own, in the middle of a layer
            scorer.load(unlike_its_manifest(candidate(folders["untied-1"])))
        with pytest.raises(AssertionError):
            scorer.load(candidate(folders["untied-1"]))
    scorer._stop()


def test_a_text_read_twice_is_read_from_its_first_token(folders, scorer):
    scorer.load(candidate(folders["untied-0"]))
    first = heard(scorer.engine, PROMPTS)

    again = scorer.engine.read(PROMPTS, [20] * len(PROMPTS))  # of some, no row is in the prefix cache; of others, some are

    assert furthest(heard(scorer.engine, PROMPTS), first) < 1e-5
    assert furthest([reading.logs for reading in again], [logs[-20:] for logs in first]) < 1e-5


# --- the context


def test_rope_is_exchanged_in_the_live_engine(folders, scorer):
    folder = folders["untied-1"]
    contexts = [None, Context("yarn", 4.0), Context("yarn", 2.0), Context("linear", 3.0), Context("ntk", 2.0), None]
    starts, gaps, apart = None, [], []
    for context in contexts:
        scorer.load(candidate(folder, context))
        logs = heard(scorer.ready(1024), LONG)
        starts = starts or scorer.starts
        gaps.append(furthest(logs, of_transformers(candidate(folder, context), LONG)))
        apart.append(logs)

    assert max(gaps) < 1e-5
    assert scorer.starts == starts
    assert apart[0] == apart[-1]
    assert all(furthest(a, b) > 1e-3 for a, b in itertools.pairwise(apart))


def test_behind_the_end_of_a_table_of_rotations_lies_anything(monkeypatch, folders, scorer):
    """What is read there may be right by chance: here the memory behind the end is filled."""

    def left_short(rope, length):
        table = rope.cos_sin_cache
        rope.cos_sin_cache = torch.cat((table, torch.full((length, table.shape[1]), math.nan)))[: len(table)]

    monkeypatch.setattr("evomerge.scoring.vllm_worker._lengthen", left_short)
    scorer.load(candidate(folders["untied-1"], Context("yarn", 1.5)))
    logs = heard(scorer.ready(1024), LONG)

    assert all(math.isfinite(log) for log in logs[0][: int(1.5 * CONTEXT) - 1])
    assert not any(math.isfinite(log) for log in logs[0][int(1.5 * CONTEXT) :])


def test_a_context_longer_than_the_engine_may_be_is_refused(suite, folders):
    config = ScoringConfig(scorer="vllm", engine={"max_model_len": 128})
    scorer = make_scorer(config, suite, model=folders["untied-0"])
    scorer._skeleton = live.module(candidate(folders["untied-0"]).config, device="meta")

    with pytest.raises(ScoringError, match="max_model_len 128 is too short, a document needs 200 tokens"):
        scorer.ready(200)


# --- the suite


def same(ours: Scores, theirs: Scores) -> float:
    """That all rows are equal, and by how much their margins are not."""
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        assert replace(a, margin=None) == replace(b, margin=None)
        assert (a.margin is None) == (b.margin is None)
    pairs = zip(ours.rows, theirs.rows, strict=True)
    return max(abs(a.margin - b.margin) for a, b in pairs if a.margin is not None and b.margin is not None)


def test_rows_are_those_of_the_hf_scorer(suite, folders, scorer):
    hf = make_scorer(ScoringConfig(), suite, model=folders["untied-0"])
    asked = {"choices": range(20), "answers": [*range(19, 9, -1), *range(10)]}
    right = []

    for model in (candidate(folders["untied-0"]), candidate(folders["untied-1"], Context("yarn", 2.0))):
        for each in (hf, scorer):
            each.load(model)
        ours, theirs = scorer.score(asked), hf.score(asked)
        right.append(sum(row.value for row in ours.rows if row.task == "answers"))

        assert same(ours, theirs) < 1e-4
    assert right[0] >= 8


@pytest.mark.parametrize(
    "options", [{"num_fewshot": 2}, {"num_fewshot": 1, "apply_chat_template": True, "fewshot_as_multiturn": True}], ids=str
)
def test_rows_behind_examples_and_chat_templates_are_those_of_the_hf_scorer(options, suite, folders):
    asked = {"choices": range(6), "answers": range(6)}
    found, prompts = [], []
    for each in ("hf", "vllm"):
        scorer = make_scorer(ScoringConfig(scorer=each, lm_eval=options), suite, model=folders["untied-0"])
        scorer.load(candidate(folders["untied-0"]))
        found.append(scorer.score(asked))
        prompts += [q.requests[0].args[0] for q in scorer.harness.questions(scorer.lm, {"answers": range(6)})]
        scorer.close()

    assert same(*found) < 1e-4
    assert prompts[:6] == prompts[6:]
    assert all((prompt[0] == "0") == ("apply_chat_template" in options) for prompt in prompts)


@pytest.mark.parametrize("name", ["sort", "tied-sort"])
def test_rows_of_the_zoo_are_those_of_the_hf_scorer(name):
    asked = {"zoo_sort": range(12), "zoo_rank_long": range(12)}
    suite = Suite(dict.fromkeys(asked, 1.0), include=("zoo:tasks",))
    found = []
    for each in ("hf", "vllm"):
        scorer = make_scorer(ScoringConfig(scorer=each), suite, model=locate("zoo:models/base"))
        scorer.load(candidate(locate(f"zoo:models/{name}")))
        found.append(scorer.score(asked))
        scorer.close()

    assert same(*found) < 1e-4
    assert found[0].mean("zoo_sort") > 0.3


def test_drawn_answers_depend_on_the_document_alone(place, folders, suite):
    config = ScoringConfig(scorer="vllm", lm_eval={"gen_kwargs": {"do_sample": True, "temperature": 1.5}})
    drawing = make_scorer(config, suite, model=folders["untied-0"])
    drawing.load(candidate(folders["untied-0"]))

    all_rows = drawing.score({"answers": range(6)}).task("answers")
    again = drawing.score({"answers": [5, 2]}).task("answers")
    drawing.close()

    assert len({row.response for row in all_rows.values()}) > 1
    assert {doc: row.response for doc, row in again.items()} == {doc: all_rows[doc].response for doc in (5, 2)}


# --- the rest


def test_two_scorers_of_one_process_take_turns(folders, scorer, suite):
    scorer.load(candidate(folders["untied-0"]))
    before = scorer.score({"choices": range(4)})
    other = make_scorer(ScoringConfig(scorer="vllm"), suite, model=folders["untied-0"])
    other.load(candidate(folders["untied-1"]))
    others = other.score({"choices": range(4)})

    assert scorer.score({"choices": range(4)}) == before
    assert other.score({"choices": range(4)}) == others != before
    other.close()


def test_a_starting_engine_leaves_the_process_as_it_was(folders, scorer):
    torch.manual_seed(5)
    random.seed(5)
    threads = torch.set_num_threads
    scorer._stop()
    scorer.load(candidate(folders["untied-0"]))
    drawn = torch.rand(3).tolist(), random.random()
    torch.manual_seed(5)
    random.seed(5)

    assert drawn == (torch.rand(3).tolist(), random.random())
    assert torch.set_num_threads is threads
