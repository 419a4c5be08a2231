"""The benchmark of scoring: every way is really taken, and its figures are those of the clock."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evomerge.bench import scoring
from tests.scoring import engines  # noqa: F401 - skips where vLLM is not installed

QUICKSTART = Path(__file__).parents[2] / "search_spaces/quickstart.yaml"
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def test_a_live_engine_is_timed_beside_fresh_ones(monkeypatch):
    monkeypatch.setattr(scoring, "LARGE", {**SMALL, "head_dim": 32})
    lines = list(scoring.bench_scoring(QUICKSTART, documents=12, candidates=1))
    rows = {found[1]: [float(x.replace(",", "")) for x in re.findall(r"[\d,]+(?:\.\d+)?", found[2])] for found in parsed(lines)}

    assert list(rows) == ["hf, live", "vllm, live", "vllm, a fresh engine", "vllm, a fresh process"]
    assert rows["vllm, a fresh process"][-2:] == [1.0, 1.0]
    assert rows["vllm, live"][-1] > rows["vllm, a fresh engine"][-1] > 1  # by CPU time: it does less


def parsed(lines: list[str]) -> list[re.Match[str]]:
    """Of the first table."""
    found = [re.match(r"((?:hf|vllm), [a-z ]*[a-z]) {2,}(.*)", line) for line in lines]
    return [match for match in found if match][:4]


@pytest.mark.parametrize(("clock", "seconds", "share"), [(0, 5.0, 0.2), (1, 3.0, 1 / 3)])
def test_a_candidate_costs_its_swap_and_its_scores(clock, seconds, share):
    way = scoring.Way("x", swaps=[(1.0, 1.0), (1.0, 1.0), (9.0, 9.0)], scores=[(4.0, 2.0), (4.0, 2.0), (9.0, 9.0)])

    assert way.seconds(clock) == seconds
    assert way.share(clock) == pytest.approx(share)
