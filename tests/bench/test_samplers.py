"""The samplers' benchmark, small: every sampler finishes, and those that learn end nearer than those that do not."""

import re

from evomerge.bench.anytime import bench_anytime
from evomerge.bench.samplers import bench_samplers, regret_path


def test_it_prints_a_row_a_sampler_with_regret_at_each_checkpoint():
    lines = list(bench_samplers(dimensions=(4,), trials=50, seeds=1, names=("random", "niches")))

    assert "4 dimensions" in lines[0]
    assert [line.split()[0] for line in lines[1:3]] == ["random", "niches"]
    assert all(re.fullmatch(r"\w+ +\d+\.\d +\d+\.\d", line) for line in lines[1:3])


def test_cma_es_ends_nearer_than_random_points():
    ours, random = (regret_path(name, 6, 120, [120], seed=0).regret[120] for name in ("cmaes", "random"))

    assert 0 <= ours < random


def test_alpha_holds_against_a_fixed_parent_and_not_against_an_incumbent():
    lines = bench_anytime(repetitions=400).splitlines()
    better = float(next(line for line in lines if line.startswith("+0 points")).split()[2])
    worse = {line.split()[0]: float(line.split()[1]) for line in lines if re.match(r"(1|300) ", line)}

    assert better < 5 + 2 * 1.1
    assert worse["300"] > 2 * worse["1"]
