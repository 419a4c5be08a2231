"""Every sampler of the table on the landscape with noise: regret against evaluations, and CPU time a proposal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from evomerge.bench import machine
from evomerge.report.tables import align
from evomerge.scoring.landscape import Landscape
from evomerge.study.samplers import SAMPLERS

DIMENSIONS = (60, 300)
CHECKPOINTS = (50, 100, 200, 400)
DOCUMENTS = 200  # scored at each evaluation
LIMITS = {"gp": 100, "margins": 200}  # evaluations beyond which a sampler takes seconds each


class Path(NamedTuple):
    """Regret after each checkpoint, in points, and the mean CPU time of a proposal in milliseconds."""

    regret: dict[int, float]
    milliseconds: float


def bench_samplers(
    dimensions: Sequence[int] = DIMENSIONS, trials: int = CHECKPOINTS[-1], seeds: int = 2, names: Sequence[str] = ()
) -> Iterator[str]:
    """A table for each number of dimensions, line by line as it is measured; regret is that of the best by its own estimate."""
    for dims in dimensions:
        points = [point for point in CHECKPOINTS if point <= trials] or [trials]
        yield f"{machine()}: {dims} dimensions, {DOCUMENTS} documents an evaluation, {seeds} seeds; regret in points after"
        head = ["sampler", *map(str, points), "ms of CPU a proposal"]
        rows = [head]
        for name in names or sorted(set(SAMPLERS) - {"auto"}):
            count = min(trials, LIMITS.get(name, trials))
            paths = [regret_path(name, dims, count, points, seed) for seed in range(seeds)]
            cells = [f"{statistics.mean(p.regret[point] for p in paths):.1f}" if point <= count else "" for point in points]
            rows.append([name, *cells, f"{statistics.mean(p.milliseconds for p in paths):.1f}"])
            yield align([head, rows[-1]])[1]
        yield "\n".join(["", *align(rows), ""])


def regret_path(name: str, dims: int, trials: int, points: Sequence[int], seed: int) -> Path:
    """One search on the landscape of a seed, begun in its middle."""
    import optuna
    from optuna.distributions import FloatDistribution

    from evomerge.study.samplers import make_sampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    landscape = Landscape(dims=dims, seed=seed)
    space: dict[str, Any] = {parameter: FloatDistribution(0.0, 1.0) for parameter in landscape.names}
    sampler = make_sampler(name, seed=seed, space=space, start=dict.fromkeys(space, 0.5))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    best, spent, regret = (-1.0, 0.0), 0.0, {}
    for count in range(1, trials + 1):
        begun = time.process_time()
        trial = study.ask(space)
        spent += time.process_time() - begun
        scores = landscape.score(trial.params, range(DOCUMENTS))
        if getattr(sampler, "wants_documents", False):
            trial.set_user_attr("documents", [float(score) for score in scores[:72]])
        if getattr(sampler, "wants_answers", False):
            margins = landscape.margin(trial.params, range(DOCUMENTS))
            trial.set_user_attr("answers", {"plain": {"documents": [float(margin) for margin in margins]}})
        estimate = float(scores.mean())
        best = max(best, (estimate, landscape.mean(trial.params)))
        begun = time.process_time()
        study.tell(trial, estimate)
        spent += time.process_time() - begun
        if count in points:
            regret[count] = 100 * (landscape.top - best[1])
    return Path(regret, 1000 * spent / trials)
