"""One engine for the whole night: many swaps, many recipes, what a fresh engine and transformers say, and no more memory."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.model import CachingLM

from evomerge.candidate.stream import Candidate, Sources, materialize
from evomerge.document import Place
from evomerge.errors import DocumentError
from evomerge.recipe import Recipe, locate
from evomerge.scoring import Scores, ScoringConfig, Suite, make_scorer
from evomerge.study.experiment import Experiment
from evomerge.study.samplers.cube import Cube
from tests.scoring.engines import PROMPTS, candidate, furthest, heard, of_transformers, said_by_vllm, spoken

QUICKSTART = Path(__file__).parents[2] / "search_spaces/quickstart.yaml"
SUITE = Suite(dict.fromkeys(("zoo_sort", "zoo_flip_long", "zoo_rank", "zoo_past"), 1.0), include=("zoo:tasks",))
PAIRS = {"untied": ("sort", "flip"), "tied": ("tied-base", "tied-sort")}
NEAR = 1e-4  # nats: as far as float32 sums in another order lead apart


def zoo(name: str) -> Path:
    return Path(locate(f"zoo:models/{name}"))


@pytest.fixture(scope="module")
def scorer() -> Iterator:
    made = make_scorer(ScoringConfig(scorer="vllm"), SUITE, model=zoo("base"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources(resident=True)


def mixed(pair: tuple[str, str], share: float, sources: Sources, factor: float = 1.0) -> Candidate:
    data = {
        "base": f"zoo:models/{pair[0]}",
        "sources": {"other": f"zoo:models/{pair[1]}"},
        "rules": [{"match": "*", "method": "linear", "weight": {"base": 1 - share, "other": share}}],
        **({"context": {"rope_type": "yarn", "factor": factor}} if factor > 1 else {}),
    }
    return materialize(Recipe.from_data(data, Place("test")), sources)


@pytest.mark.parametrize("kind", PAIRS)
def test_thirty_swaps_leave_no_trace(kind, scorer, sources):
    fresh = {name: said_by_vllm(zoo(name)) for name in PAIRS[kind]}
    models = {name: candidate(zoo(name)) for name in PAIRS[kind]}
    starts, gaps = None, []
    for swap, name in zip(range(30), itertools.cycle((*PAIRS[kind], "mixed"))):
        model = models.get(name) or mixed(PAIRS[kind], (1 + swap) / 32, sources)
        scorer.load(model)
        said = spoken(scorer.engine)
        starts = starts or scorer.starts
        gaps.append(furthest(said[0], of_transformers(model, PROMPTS)))

        assert name == "mixed" or said == fresh[name]
    assert max(gaps) < NEAR  # in float32 transformers itself is up to 7.4e-5 from its own float64 on the tied pair
    assert scorer.starts == starts
    assert scorer.engine.plain is False  # vLLM for CPUs computes with packed copies: see test_vllm_places.py


def test_stacked_layers_get_an_engine_of_their_depth_and_the_next_candidate_one_of_its_own(scorer, sources):
    data = {
        "base": "zoo:models/base",
        "sources": {"sort": "zoo:models/sort"},
        "slices": [{"source": "base", "layers": [0, 4]}, {"source": "sort", "layers": [2, 6]}],
    }
    stacked = materialize(Recipe.from_data(data, Place("test")), sources)
    scorer.load(candidate(zoo("base")))
    before, starts = spoken(scorer.engine), scorer.starts
    scorer.load(stacked)

    assert stacked.config["num_hidden_layers"] == 8
    assert furthest(heard(scorer.engine, PROMPTS), of_transformers(stacked, PROMPTS)) < NEAR
    assert scorer.starts == starts + 1
    scorer.load(candidate(zoo("base")))
    assert spoken(scorer.engine) == before
    assert scorer.starts == starts + 2


def recipes(count: int) -> Iterator[Recipe]:
    """Drawn from the quickstart's space, always the same ones."""
    space = Experiment.read(QUICKSTART).space
    cube, draw = Cube(space.distributions()), np.random.default_rng(0)
    for _ in range(count):
        yield replace(space.build(cube.params(0.4 * draw.random(len(cube)))), heal=None)


def differing(ours: Scores, theirs: Scores) -> list[tuple]:
    """Rows that are worth another value; of all others, margins are compared."""
    pairs = list(zip(ours.rows, theirs.rows, strict=True))
    assert [(a.task, a.doc, a.hash) for a, _ in pairs] == [(b.task, b.doc, b.hash) for _, b in pairs]
    same = [(a, b) for a, b in pairs if a.value == b.value]
    assert all((a.margin is None) == (b.margin is None) for a, b in same)
    assert max(abs(a.margin - b.margin) for a, b in same if a.margin is not None and b.margin is not None) < NEAR
    return [(a.task, a.doc, a.margin, b.margin) for a, b in pairs if a.value != b.value]


def test_fifty_recipes_are_worth_the_same_to_hf_and_to_vllm(scorer, sources):
    hf = make_scorer(ScoringConfig(), SUITE, model=zoo("base"))
    asked = {"zoo_sort": range(8), "zoo_flip_long": range(6), "zoo_rank": range(8), "zoo_past": range(6)}
    values, apart = [], []
    for recipe in recipes(50):
        model = materialize(recipe, sources)
        scored = []
        for each in (scorer, hf):
            each.load(model)
            scored.append(each.score(asked))
        apart += differing(*scored)
        values.append([np.mean([scores.mean(task) for task in asked]) for scores in scored])

    print("rows whose margin lies at its border:", apart)  # noqa: T201
    assert all(abs(margin) < NEAR for *_, a, b in apart for margin in (a, b) if margin is not None)
    assert len({value for value, _ in values}) > 10
    ranked = [sorted(range(50), key=lambda i: (-values[i][which], i))[:5] for which in (0, 1)]
    assert ranked[0] == ranked[1]


def test_the_cache_of_lm_eval_would_give_a_candidate_the_answers_of_another_and_cannot_be_asked_for(scorer, tmp_path):
    def requests():
        return [request for asked in scorer.harness.questions(scorer.lm, {"zoo_rank": range(20)}) for request in asked.requests]

    scorer.load(candidate(zoo("flip")))
    first = CachingLM(scorer.lm, str(tmp_path / "cache.db")).loglikelihood(requests())
    scorer.load(candidate(zoo("rank")))
    second = CachingLM(scorer.lm, str(tmp_path / "cache.db")).loglikelihood(requests())

    assert second == first
    assert scorer.lm.loglikelihood(requests()) != first
    with pytest.raises(DocumentError, match="use_cache"):
        ScoringConfig.from_data({"with": "vllm", "lm_eval": {"use_cache": "cache.db"}}, Place("scoring"))


def resident_memory() -> int:
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_memory_after_two_hundred_swaps_is_that_after_twenty(scorer, sources):
    kept = {}
    scorer.load(candidate(zoo("base")))
    scorer.ready(1024)
    for swap in range(1, 201):
        scorer.load(mixed(("base", "sort"), swap / 200, sources, 1 + swap / 80))
        heard(scorer.engine, PROMPTS[:1])
        if swap in (20, 200):
            kept[swap] = resident_memory()

    assert abs(kept[200] / kept[20] - 1) < 0.02
