"""What vLLM cannot do is said before a search begins; memory that does not suffice costs smaller batches or one candidate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evomerge.candidate import live
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.stream import Candidate
from evomerge.errors import ScoringError
from evomerge.recipe import locate
from evomerge.scoring import ScoringConfig, Suite, make_scorer
from evomerge.scoring.vllm import VllmScorer
from evomerge.study.search import search
from tests.scoring.engines import build, candidate

SUITE = Suite({"zoo_sort": 1.0, "zoo_rank": 1.0}, include=("zoo:tasks",))
BASE = Path(locate("zoo:models/base"))
SPACE = """
recipe:
  base: zoo:models/base
  sources: {sort: zoo:models/sort}
  rules: [{match: "*", method: task_arithmetic, weight: {sort: {range: [0.0, 1.0]}}}]
  context: {rope_type: yarn, factor: {range: [1.0, 3.0]}}
suite: {include: zoo:tasks, tasks: {zoo_sort: 1.0, zoo_sort_long: 1.0}, rungs: [8], select: 8, sealed: 8}
"""


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"dtype": "half"}, "'dtype' is set by the scorer"),
        ({"distributed_executor_backend": "ray"}, "'distributed_executor_backend' is set by the scorer"),
        ({"tensor_parallel_size": 3}, "tensor_parallel_size 3 cannot share the 4 attention heads of this model; lower it"),
        ({"pipeline_parallel_size": 7}, "pipeline_parallel_size 7 cannot share the 6 layers of this model; lower it"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0; give a whole number"),
        ({"pipeline_parallel_size": "two"}, "pipeline_parallel_size is 'two'; give a whole number"),
        ({"data_parallel_size": 2}, "'data_parallel_size' is what workers are for; leave it out, and give --workers"),
        ({"max_model_length": 512}, "no argument 'max_model_length'; did you mean 'max_model_len'?"),
        ({"max_logprobs": 1}, "max_logprobs 1 is too few"),
    ],
)
def test_engine_arguments_that_this_scorer_cannot_work_with_are_refused(engine, message):
    with pytest.raises(ScoringError, match=message):
        make_scorer(ScoringConfig(scorer="vllm", engine=engine), SUITE, model=BASE)


@pytest.mark.parametrize("most", [-1, 2, 20])
def test_enough_log_probabilities_are_taken(most):
    make_scorer(ScoringConfig(scorer="vllm", engine={"max_logprobs": most}), SUITE, model=BASE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 16}, "heads have 16 dimensions, vLLM's CPU backend runs 32 and more; score it `with: hf`"),
        ({"architectures": ["MothForCausalLM"]}, "vLLM does not know the architecture MothForCausalLM; score it `with: hf`"),
    ],
)
def test_models_that_vllm_does_not_run_are_refused_before_anything_runs(change, message, tmp_path):
    config = build(tmp_path / "model", 0, tied=False) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))

    with pytest.raises(ScoringError, match=message):
        make_scorer(ScoringConfig(scorer="vllm"), SUITE, model=config.parent)


def test_a_candidate_with_small_heads_is_refused_by_name():
    config = {**Checkpoint.open(BASE).config, "head_dim": 16}
    model = Candidate.of(config, dict(live.module(config).state_dict()), "small")

    with pytest.raises(ScoringError, match="heads have 16 dimensions"):
        make_scorer(ScoringConfig(scorer="vllm"), SUITE, model=BASE).load(model)


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (512, "max_model_len 512 is shorter than the context of 768 tokens .* raise it to 768, .* the largest that fits is 2$"),
        (128, r"max_model_len 128 is too short, document \d+ of zoo_sort_long needs \d{3} tokens with its answer"),
    ],
)
def test_what_an_engine_has_no_room_for_is_named_before_the_search_begins(room, message, tmp_path):
    (tmp_path / "space.yaml").write_text(f"{SPACE}scoring: {{with: vllm, engine: {{max_model_len: {room}}}}}\n")

    with pytest.raises(ScoringError, match=message):
        search(tmp_path / "space.yaml", tmp_path / "study", workers=1)
    assert not (tmp_path / "study").exists()


# --- memory


@pytest.fixture(scope="module")
def scorer():
    made = make_scorer(ScoringConfig(scorer="vllm"), SUITE, model=BASE)
    yield made
    made.close()


ASKED = {"zoo_sort": range(6), "zoo_rank": range(6)}


def short_of_memory(monkeypatch, times: int, error: Exception) -> None:
    """The next calls of vLLM fail as they do where memory is short."""
    from vllm import LLM

    generate, left = LLM.generate, [error] * times

    def failing(self, *args, **kwargs):
        if left:
            raise left.pop()
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(LLM, "generate", failing)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=type
)
def test_where_memory_is_short_smaller_batches_are_tried_once(error, monkeypatch, scorer: VllmScorer):
    scorer.load(candidate(BASE))
    whole, starts = scorer.score(ASKED), scorer.starts
    _, texts = scorer.engine.batch
    scorer._batch = None
    short_of_memory(monkeypatch, 1, error)

    assert [row.value for row in scorer.score(ASKED).rows] == [row.value for row in whole.rows]
    assert scorer.starts == starts + 1
    assert scorer.engine.batch[1] == texts // 2


def test_a_candidate_too_large_for_smaller_batches_is_given_up_and_the_next_is_scored(monkeypatch, scorer: VllmScorer):
    scorer.load(candidate(BASE))
    whole = scorer.score(ASKED)
    short_of_memory(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory"))

    with pytest.raises(ScoringError, match=r"out of memory, in smaller batches too \(CUDA out of memory\); lower scoring.batch"):
        scorer.score(ASKED)
    scorer.load(candidate(BASE))

    assert [row.value for row in scorer.score(ASKED).rows] == [row.value for row in whole.rows]
