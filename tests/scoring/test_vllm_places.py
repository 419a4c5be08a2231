"""Where vLLM computes with plain weights a candidate is merged straight into them; where it does not, nobody is misled."""

from __future__ import annotations

import pytest

from evomerge import kernels
from evomerge.candidate import live
from evomerge.candidate.stream import Candidate, Sources, materialize
from evomerge.document import Place
from evomerge.recipe import Recipe, locate
from evomerge.scoring.vllm_engine import Engine
from tests.scoring.engines import CONTEXT, PROMPTS, furthest, of_transformers, spoken

NEAR = 1e-4  # nats


def merged(share: float, family: str = "untied") -> Candidate:
    base, other = {"untied": ("base", "sort"), "tied": ("tied-base", "tied-sort")}[family]
    data = {
        "base": f"zoo:models/{base}",
        "sources": {"other": f"zoo:models/{other}"},
        "rules": [
            {"match": "*norm*", "method": "passthrough", "sources": ["other"]},
            {"match": "*", "method": "task_arithmetic", "weight": {"other": share}},
        ],
        "dtype": "float32",
    }
    return materialize(Recipe.from_data(data, Place("test")), Sources(resident=True))


def started(candidate: Candidate) -> Engine:
    config = live.read_config(candidate.config)
    engine = Engine(config, CONTEXT, str(locate("zoo:models/base")), "float32", {})
    engine.load(candidate, config)
    return engine


def answers(engine: Engine, candidate: Candidate):
    engine.load(candidate, live.read_config(candidate.config))
    return spoken(engine)


@pytest.fixture(scope="module", params=["untied", "tied"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def engine(family):
    """vLLM for CPUs computes with packed copies; without oneDNN it falls back to plain weights, as it has them on a GPU."""
    import vllm._custom_ops

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(vllm._custom_ops, "_supports_onednn", False)
        made = started(merged(0.0, family))
        yield made
        made.close()


def inside(engine: Engine):
    """The one worker of an engine, and its model's tensors by name."""
    worker = engine._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return worker, dict(worker.model_runner.get_model().named_parameters())


def test_candidates_merged_straight_into_the_engine_are_answered_for_like_those_of_vllms_loader(engine, family):
    assert engine.plain
    for share in (0.3, 1.0):
        candidate = merged(share, family)
        straight = answers(engine, candidate)
        engine.plain = False
        loaded = answers(engine, candidate)
        engine.plain = True

        assert straight == loaded
        assert furthest(straight[0], of_transformers(candidate, PROMPTS)) < NEAR


def test_a_merged_tensor_is_computed_in_the_memory_of_the_engine(engine, family):
    worker, parameters = inside(engine)
    places = worker.places
    streamed = dict(live.into(merged(0.5, family), places).weights)

    assert streamed.keys() == places.keys()
    assert all(kernels.same_memory(tensor, places[name]) for name, tensor in streamed.items() if "norm" not in name)
    memory = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()}
    assert {place.untyped_storage().data_ptr() for place in places.values()} == memory


def test_nothing_is_written_by_the_search_for_places(engine, family):
    engine.load(merged(0.0, family), live.read_config(merged(0.0, family).config))
    worker, parameters = inside(engine)
    before = {name: parameter.clone() for name, parameter in parameters.items()}

    assert not worker.find_places(merged(0.4, family))  # the engine holds another
    assert all(parameter.equal(before[name]) for name, parameter in parameters.items())


def test_an_engine_that_keeps_plain_weights_but_computes_with_a_packed_copy_is_found_out(monkeypatch):
    import vllm._custom_ops
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm
    monkeypatch.setattr(vllm._custom_ops, "_supports_onednn", True)
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", lambda layer, remove_weight: pack(layer, False))
    engine = started(merged(0.0))

    assert inside(engine)[0].places
    assert engine.plain is False
    assert furthest(answers(engine, merged(0.7))[0], of_transformers(merged(0.7), PROMPTS)) < NEAR
    engine.close()
