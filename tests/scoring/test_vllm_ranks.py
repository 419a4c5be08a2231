"""An engine of several ranks says what one of a single rank and transformers say, and outlives the death of a rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.candidate.stored import from_disk
from evomerge.candidate.stream import Candidate, Sources, materialize
from evomerge.document import Place
from evomerge.recipe import Context, Recipe, locate
from evomerge.scoring import Scores, ScoringConfig, Suite, make_scorer
from evomerge.scoring.vllm import VllmScorer
from tests.scoring.engines import LONG, PROMPTS, furthest, heard, of_transformers

ASKED = {"zoo_sort": range(6), "zoo_rank_long": range(6)}
SUITE = Suite(dict.fromkeys(ASKED, 1.0), include=("zoo:tasks",))
BASE = Path(locate("zoo:models/base"))
SPREAD = {"tensor": {"tensor_parallel_size": 2}, "pipeline": {"pipeline_parallel_size": 2}}
NEAR = 1e-4  # nats, as in test_vllm_swaps.py


@pytest.fixture(scope="module", params=SPREAD)
def scorer(request) -> Iterator[VllmScorer]:
    engine = {**SPREAD[request.param], "max_model_len": 1024}  # at once: a start of two ranks takes a quarter of a minute
    made = make_scorer(ScoringConfig(scorer="vllm", engine=engine), SUITE, model=BASE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources(resident=True)


def merged(share: float, sources: Sources, context: Context | None = None, pair: tuple[str, str] = ("base", "sort")) -> Candidate:
    data = {
        "base": f"zoo:models/{pair[0]}",
        "sources": {"other": f"zoo:models/{pair[1]}"},
        "rules": [{"match": "*", "method": "linear", "weight": {"base": 1 - share, "other": share}}],
    }
    return materialize(replace(Recipe.from_data(data, Place("test")), context=context), sources)


def healed(whole: Candidate) -> Candidate:
    return Candidate.of(whole.config, {name: tensor * 1.01 for name, tensor in whole.weights}, "healed")


def test_recipes_models_and_healed_ones_are_exchanged_in_all_ranks(scorer, sources):
    models = [
        merged(0.3, sources),
        from_disk("zoo:models/flip"),
        healed(merged(0.5, sources)),
        merged(0.9, sources, Context("yarn", 2.0)),
        merged(0.3, sources),
    ]
    said, starts = [], None
    for model in models:
        scorer.load(model)
        said.append(heard(scorer.engine, [*PROMPTS, LONG[0]]))
        starts = starts or scorer.starts

        assert furthest(said[-1], of_transformers(model, [*PROMPTS, LONG[0]])) < NEAR
    assert said[0] == said[-1]
    assert scorer.starts == starts


def test_rows_are_those_of_the_hf_scorer(scorer, sources):
    model = merged(0.6, sources)
    hf = make_scorer(ScoringConfig(), SUITE, model=BASE)
    for each in (scorer, hf):
        each.load(model)

    assert differing(scorer.score(ASKED), hf.score(ASKED)) == []


def differing(ours: Scores, theirs: Scores) -> list:
    pairs = list(zip(ours.rows, theirs.rows, strict=True))
    apart = [pair for pair in pairs if replace(pair[0], margin=None) != replace(pair[1], margin=None)]
    return apart + [(a, b) for a, b in pairs if a.margin is not None and abs(a.margin - b.margin) >= NEAR]


def kill_a_rank(scorer: VllmScorer) -> None:
    executor = scorer.engine._llm.llm_engine.engine_core.engine_core.model_executor
    os.kill(executor.workers[1].proc.pid, signal.SIGKILL)


@pytest.mark.parametrize("scorer", ["tensor"], indirect=True)
def test_a_rank_killed_while_it_works_costs_one_restart_and_no_row(scorer, sources, monkeypatch):
    from vllm import LLM

    scorer.load(merged(0.6, sources))
    whole, starts, generate, left = scorer.score(ASKED), scorer.starts, LLM.generate, [1]

    def bereaved(self, *args, **kwargs):
        if left:
            left.pop()
            kill_a_rank(scorer)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(LLM, "generate", bereaved)

    assert scorer.score(ASKED) == whole
    assert scorer.starts == starts + 1


@pytest.mark.parametrize("scorer", ["tensor"], indirect=True)
def test_a_rank_killed_in_a_swap_costs_one_restart_and_no_candidate(scorer, sources):
    scorer.load(merged(0.3, sources))
    starts = scorer.starts
    kill_a_rank(scorer)
    scorer.load(merged(0.6, sources))

    assert furthest(heard(scorer.engine, PROMPTS), of_transformers(merged(0.6, sources), PROMPTS)) < NEAR
    assert scorer.starts == starts + 1
