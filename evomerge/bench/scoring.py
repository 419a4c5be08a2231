"""What a live engine saves: candidates an hour and documents a second with each scorer, and with a fresh engine for each.

All in one run, so that their ratios hold on a busy machine too; CPU seconds stand beside those by the wall for the same reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evomerge.bench import machine
from evomerge.candidate import live as live_module
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.save import save
from evomerge.candidate.stored import from_disk
from evomerge.candidate.stream import Candidate, Sources, materialize
from evomerge.document import Place
from evomerge.errors import ScoringError
from evomerge.recipe import Recipe
from evomerge.report.tables import align
from evomerge.scoring import Scorer, ScoringConfig, Suite, make_scorer
from evomerge.study.experiment import Experiment

Documents = Mapping[str, Sequence[int]]
LARGE = {  # 24 M parameters, as a Llama of the zoo
    "hidden_size": 512, "intermediate_size": 1440, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 64,
}  # fmt: skip
WRITTEN = 32  # tokens a document


@dataclass
class Way:
    """A way to score a candidate: seconds of each, by the wall and of the CPU; its swap apart."""

    name: str
    swaps: list[tuple[float, float]] = field(default_factory=list)
    scores: list[tuple[float, float]] = field(default_factory=list)

    @contextmanager
    def timed(self, part: list[tuple[float, float]]) -> Iterator[None]:
        wall, cpu = time.perf_counter(), _cpu()
        yield
        part.append((time.perf_counter() - wall, _cpu() - cpu))

    def seconds(self, clock: int) -> float:
        """Of the median candidate; clock 0 is the wall, 1 the CPU."""
        return statistics.median(swap[clock] + score[clock] for swap, score in zip(self.swaps, self.scores, strict=True))

    def share(self, clock: int) -> float:
        """Of the swap in a candidate's time."""
        return statistics.median(swap[clock] for swap in self.swaps) / self.seconds(clock)


def bench_scoring(space: str | Path, documents: int = 600, candidates: int = 3, large: bool = True) -> Iterator[str]:
    """Lines of a table; `documents` a candidate, shared out over the tasks of the space's suite. Raises EvomergeError."""
    experiment = Experiment.read(space)
    tasks = list(experiment.suite.tasks)
    asked = {task: range(documents // len(tasks)) for task in tasks}
    count = sum(map(len, asked.values()))
    recipes = list(drawn(experiment, candidates + 1))
    yield f"{machine()}, {count} documents of {space}, median of {candidates} candidates after a first one"
    ways = [live(experiment, "hf", asked, recipes)]
    if importlib.util.find_spec("vllm") is None:
        yield "vLLM is not installed here; see docs/vllm.md"
    else:
        ways += [
            live(experiment, "vllm", asked, recipes),
            fresh(experiment, asked, recipes),
            processes(experiment, asked, recipes),
        ]
    yield from table(ways, count)
    if large and len(ways) > 1:
        yield f"{WRITTEN} tokens for each of {count} documents, {parameters():.1f} M parameters of chance:"
        yield from table([written(count, candidates)], count)


def drawn(experiment: Experiment, count: int) -> Iterator[Recipe]:
    """Recipes at random from a space, the same in every run."""
    import optuna

    from evomerge.study.samplers import make_sampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = experiment.space.distributions()
    study = optuna.create_study(sampler=make_sampler("random", seed=0, space=distributions))
    for _ in range(count):
        yield replace(experiment.space.build(study.ask(distributions).params), heal=None)


def live(experiment: Experiment, scorer: str, asked: Documents, recipes: Sequence[Recipe]) -> Way:
    """One scorer, through which the candidates pass; the first, which builds all prompts, is not counted."""
    way, sources = Way(f"{scorer}, live"), Sources(resident=True)
    with closing(_scorer(experiment, scorer)) as made:
        for recipe in recipes:
            _score(way, made, materialize(recipe, sources), asked)
    return _without_first(way)


def fresh(experiment: Experiment, asked: Documents, recipes: Sequence[Recipe]) -> Way:
    """A new engine for every candidate, in a process that has imported all and built all prompts before."""
    way, sources = Way("vllm, a fresh engine"), Sources(resident=True)
    with closing(_scorer(experiment, "vllm")) as made:
        for recipe in recipes:
            _end(made)
            _score(way, made, materialize(recipe, sources), asked)
    return _without_first(way)


def _end(scorer: Any) -> None:
    if scorer.engine is not None:
        scorer.engine.close()


def processes(experiment: Experiment, asked: Documents, recipes: Sequence[Recipe]) -> Way:
    """Each candidate written to a disk in memory, and scored by a process that begins with nothing: two of them."""
    way, sources = Way("vllm, a fresh process"), Sources(resident=True)
    for recipe in recipes[1:3]:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            model, base = Path(folder) / "model", sources.checkpoint(recipe.base.model)
            with way.timed(way.swaps):
                save(materialize(recipe, sources), model, copy_from=base.path)
            job = {"tasks": {task: len(docs) for task, docs in asked.items()}, "include": list(experiment.suite.include)}
            command = [sys.executable, "-m", "evomerge.bench.scoring", str(model), json.dumps(job)]
            with way.timed(way.scores):
                ended = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if ended.returncode:
            raise ScoringError(f"bench: the fresh process failed: {ended.stderr.strip().splitlines()[-1][:300]}")
    return way


def score_alone(model: Path, job: Mapping[str, Any]) -> None:
    """What the fresh process does."""
    suite = Suite(dict.fromkeys(job["tasks"], 1.0), include=tuple(job["include"]))
    with closing(make_scorer(ScoringConfig(scorer="vllm"), suite, model=model)) as scorer:
        scorer.load(from_disk(model))
        scorer.score({task: range(count) for task, count in job["tasks"].items()})


def written(documents: int, candidates: int) -> Way:
    """A larger model that writes a fixed number of tokens a document, in a live engine."""
    way = Way("vllm, live")
    with tempfile.TemporaryDirectory() as folder:
        suite = _long_answers(Path(folder), documents)
        models = [_of_chance(Path(folder) / name, seed) for seed, name in enumerate(("base", "other"))]
        sources = Sources(resident=True)
        with closing(make_scorer(ScoringConfig(scorer="vllm"), suite, model=models[0])) as scorer:
            for i in range(candidates + 1):
                share = (1 + i) / (candidates + 2)
                _score(way, scorer, materialize(_halfway(models, share), sources), {"written": range(documents)})
    return _without_first(way)


def _score(way: Way, scorer: Scorer, candidate: Candidate, asked: Documents) -> None:
    with way.timed(way.swaps):
        scorer.load(candidate)
    with way.timed(way.scores):
        scorer.score(asked)


def _without_first(way: Way) -> Way:
    return Way(way.name, way.swaps[1:], way.scores[1:])


def _scorer(experiment: Experiment, scorer: str) -> Scorer:
    base = experiment.space.build(experiment.space.start()).base.model
    config = replace(experiment.scoring, scorer=scorer, engine=experiment.scoring.engine if scorer == "vllm" else {})
    return make_scorer(config, experiment.suite, model=Sources().checkpoint(base).path)


def table(ways: Sequence[Way], documents: int) -> list[str]:
    """By the wall, and in brackets by CPU time; the ratios are to the last way, which saves nothing."""
    head = ["", "candidates an hour", "documents a second", "swap, of its time", "times the last"]
    return align([head, *([way.name, *(_both(way, figure) for figure in _figures(ways[-1], documents))] for way in ways)])


def _figures(last: Way, documents: int) -> list[Callable[[Way, int], str]]:
    return [
        lambda way, clock: f"{3600 / way.seconds(clock):,.0f}",
        lambda way, clock: f"{documents / way.seconds(clock):,.0f}",
        lambda way, clock: f"{way.share(clock):.1%}",
        lambda way, clock: f"{last.seconds(clock) / way.seconds(clock):.1f}",
    ]


def _both(way: Way, figure: Callable[[Way, int], str]) -> str:
    return f"{figure(way, 0)} ({figure(way, 1)})"


def _cpu() -> float:
    """CPU seconds of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


# --- the larger model


def _long_answers(folder: Path, documents: int) -> Suite:
    """Questions of the zoo, to be answered with text that no stop ends."""
    from evomerge.recipe import locate

    lines = locate("zoo:tasks/data/zoo_sort.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [next(iter(json.loads(line).values())) for line in lines[:documents]]
    rows = [{"prompt": str(prompt), "answer": "a"} for prompt in prompts]
    (folder / "written.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "written.yaml").write_text(
        "task: written\ndataset_path: json\ndataset_kwargs: {data_files: {test: written.jsonl}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: prompt\ndoc_to_target: answer\ntarget_delimiter: ''\n"
        f"generation_kwargs: {{until: ['\\0'], do_sample: false, max_gen_toks: {WRITTEN}}}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\nmetadata: {version: 1.0}\n",
        encoding="utf-8",
    )
    return Suite({"written": 1.0}, include=(str(folder),))


def _of_chance(folder: Path, seed: int) -> Path:
    """A model directory with weights of chance."""
    import torch
    from transformers import LlamaForCausalLM

    base = Checkpoint.open("zoo:models/base")
    config = {**base.config, **LARGE}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(live_module.read_config(config))
    with torch.no_grad():
        model.lm_head.weight[config["eos_token_id"]] = 0  # of the largest of many numbers, 0 is seldom one
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    return save(Candidate.of(config, tensors, folder.name), folder, copy_from=base.path)


def parameters() -> float:
    """Millions, of the larger model without its embeddings."""
    hidden, heads = LARGE["hidden_size"], LARGE["num_attention_heads"] + LARGE["num_key_value_heads"]
    layer = 2 * hidden * heads * LARGE["head_dim"] + 3 * hidden * LARGE["intermediate_size"]
    return LARGE["num_hidden_layers"] * layer / 1e6


def _halfway(models: Sequence[Path], share: float) -> Recipe:
    data = {
        "base": str(models[0]),
        "sources": {"other": str(models[1])},
        "rules": [{"match": "*", "method": "linear", "weight": {"base": 1 - share, "other": share}}],
    }
    return Recipe.from_data(data, Place("bench"))


if __name__ == "__main__":
    score_alone(Path(sys.argv[1]), json.loads(sys.argv[2]))
