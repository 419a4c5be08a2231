"""Trains a family of the zoo: `python -m evomerge.zoo.train --seed 0 --out DIR`.

Two bases that have the target skills partly and the guard skill almost (one with tied embeddings), then an expert a
skill, trained on nothing else until it has that skill well. When to stop is a rule about measured skill, never about
seconds, so that a seed gives the same bytes on one machine however busy it is.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM

from . import architecture
from .curriculum import BaseRule, ExpertRule, History, Point, train_base, train_expert
from .skills import TARGETS


class Job(NamedTuple):
    """One model to train: a base where `skill` is empty, else an expert that starts from the base `start`."""

    name: str
    start: str = ""
    skill: str = ""


TIED_SKILL = TARGETS[0]
BASES = (Job("base"), Job("tied-base"))
EXPERTS = (*(Job(skill, "base", skill) for skill in TARGETS), Job(f"tied-{TIED_SKILL}", "tied-base", TIED_SKILL))


def train_family(out: Path, seed: int, only: Sequence[str] = (), scale: float = 1.0, jobs: int = 1) -> None:
    """The bases, then the experts, `jobs` at a time; an expert asked for alone starts from the base found in `out`."""
    for stage in (BASES, EXPERTS):
        wanted = [job for job in stage if not only or job.name in only]
        run = partial(train, out=out, seed=seed, scale=scale)
        if jobs == 1:
            list(map(run, wanted))
        else:
            with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
                list(pool.map(run, wanted))


def train(job: Job, out: Path, seed: int, scale: float) -> None:
    """One model, from its start to its directory. `scale` shortens the training, for tests."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, say = start(job, out), partial(print_point, f"[seed {seed}, {job.name}]")
    if job.skill:
        history = train_expert(model, job.skill, f"{seed} {job.name}", ExpertRule(), scale, say)
    else:
        history = train_base(model, f"{seed} {job.name}", BaseRule(), scale, say)
    architecture.save(model, out / job.name)
    write_history(history, out / job.name, seed)


def start(job: Job, out: Path) -> LlamaForCausalLM:
    """What a job begins with: random weights, or the base as it was saved."""
    if job.skill:
        return LlamaForCausalLM.from_pretrained(out / job.start, dtype=torch.float32)
    return architecture.fresh(tied=job.name.startswith("tied"))


def print_point(label: str, point: Point) -> None:
    """One line of progress."""
    figures = "  ".join(f"{name} {value:.2f}" for name, value in point.skill.items())
    print(f"{label} {point.tokens / 1e3:5.0f}k tokens  loss {point.loss:.3f}  {figures}", flush=True)


def write_history(history: History, place: Path, seed: int) -> None:
    """`training.json` beside the weights: what was measured on the way, and how many tokens it took."""
    points = [point._asdict() for point in history]
    (place / "training.json").write_text(json.dumps({"seed": seed, "history": points}, indent=1) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m evomerge.zoo.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a directory; each model gets one of its own in it")
    parser.add_argument("--only", nargs="*", default=(), choices=[job.name for job in BASES + EXPERTS])
    parser.add_argument("--scale", type=float, default=1.0, help="below 1, a shorter training that learns less")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at a time, one thread each")
    options = parser.parse_args()
    train_family(options.out, options.seed, options.only, options.scale, options.jobs)


if __name__ == "__main__":
    main()
