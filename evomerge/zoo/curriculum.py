"""How a model of the zoo comes to know just so much: a base partly skilled, an expert well but not perfectly.

On such a family merging works and searching pays. Experts trained to the end know nothing else, and every merge with
them is lost; experts that also see the other skills forget nothing, and there is nothing to find.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from torch import Tensor, autograd
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from transformers import LlamaForCausalLM

from .measure import accuracy
from .muon import Muon
from .rows import Packer, Rows
from .skills import GUARD, SKILLS, TARGETS, distinct

ROWS = 8  # of a step: many small steps bring the skills earlier than few large ones
LENGTH = 256
WARM_UP = 10


@dataclass(frozen=True)
class BaseRule:
    """A base stops when every skill lies within `slack` of its goal, now and on average, or when it comes no nearer.

    Some never hit all goals at once: a skill that came too far does not go again. Those go back to where they were nearest.
    """

    goals: Mapping[str, float] = field(default_factory=lambda: {"sort": 0.42, "flip": 0.42, "rank": 0.55, GUARD: 0.91})
    slack: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(TARGETS, 0.17) | {GUARD: 0.025})
    every: int = 15
    patience: int = 12  # measurements
    cap: int = 800

    def distance(self, *skills: Mapping[str, float]) -> float:
        """From the goals, in slacks: 1 or less where the base may stop."""
        return max(abs(skill[name] - goal) / self.slack[name] for name, goal in self.goals.items() for skill in skills)


@dataclass(frozen=True)
class ExpertRule:
    """An expert stops once it has its skill as well as `goal`."""

    goal: float = 0.86
    every: int = 5
    cap: int = 600


class Point(NamedTuple):
    """What was measured at one moment of a training."""

    tokens: int
    loss: float
    skill: dict[str, float]


History = list[Point]
Say = Callable[[Point], None]


def train_base(model: LlamaForCausalLM, seed: str, rule: BaseRule, scale: float, say: Say) -> History:
    """Asks most for the skill farthest from its goal, in steps that shrink as the goals come near.

    Skills come as phase transitions: with fixed shares each would end at 0 or at 1, with these all end in the middle.
    """
    optimizer, exam = BaseOptimizer(model), Exam(tuple(SKILLS), scale)
    packer = Packer(tuple(SKILLS), LENGTH, seed)
    average = dict.fromkeys(SKILLS, 0.0)
    history: History = []
    nearest = Nearest()
    for step in range(1, scaled(rule.cap, scale) + 1):
        loss = backward(model, packer.draw(ROWS, shares(rule, average)))
        optimizer.step(min(1.0, step / WARM_UP) * max(0.1, gap(rule, average)))
        if step % scaled(rule.every, scale):
            continue
        history.append(Point(step * ROWS * LENGTH, loss, exam.take(model)))
        say(history[-1])
        average = {name: 0.4 * average[name] + 0.6 * skill for name, skill in history[-1].skill.items()}
        nearest.see(model, rule.distance(history[-1].skill, average), len(history))
        if nearest.distance <= 1 or len(history) - nearest.place >= rule.patience:
            break
    model.load_state_dict(nearest.weights)
    return history[: nearest.place]


class Nearest:
    """The weights that were nearest to the goals so far."""

    distance, place = math.inf, 0

    def see(self, model: LlamaForCausalLM, distance: float, place: int) -> None:
        """Keep these weights where none before were nearer."""
        if distance <= self.distance:
            self.distance, self.place = distance, place
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}


def train_expert(model: LlamaForCausalLM, skill: str, seed: str, rule: ExpertRule, scale: float, say: Say) -> History:
    """Nothing but its own skill, by plain AdamW, until it has it well."""
    optimizer, exam = adamw(model.parameters(), lr=1e-3), Exam((skill,), scale)
    packer = Packer((skill,), LENGTH, seed)
    history: History = []
    for step in range(1, scaled(rule.cap, scale) + 1):
        loss = backward(model, packer.draw(ROWS, {skill: 1.0}))
        optimizer.step()
        optimizer.zero_grad()
        if step % scaled(rule.every, scale):
            continue
        history.append(Point(step * ROWS * LENGTH, loss, exam.take(model)))
        say(history[-1])
        if history[-1].skill[skill] >= rule.goal:
            break
    return history


def shares(rule: BaseRule, skill: Mapping[str, float]) -> dict[str, float]:
    """How much of the next rows goes to each skill: by its distance from the goal, and nearly none beyond it."""
    return {name: min(0.5, max(0.02, goal - skill[name] + 0.1)) for name, goal in rule.goals.items()}


def gap(rule: BaseRule, skill: Mapping[str, float]) -> float:
    """How far the skills are from their goals, 1 at the beginning and 0 at the end."""
    return sum(min(1.0, abs(1 - skill[name] / goal)) for name, goal in rule.goals.items()) / len(rule.goals)


def scaled(count: int, scale: float) -> int:
    """A count of a shortened training."""
    return max(2, round(count * min(1.0, scale)))


def backward(model: LlamaForCausalLM, rows: Rows) -> float:
    """The loss on one batch; its gradients stay in the model."""
    logits = model(input_ids=rows.tokens[:, :-1], use_cache=False).logits
    losses = cross_entropy(logits.flatten(0, 1), rows.tokens[:, 1:].flatten(), reduction="none")
    weights = rows.weights[:, 1:].flatten()
    loss: Tensor = (losses * weights).sum() / weights.sum()
    autograd.backward(loss)
    return loss.item()


def adamw(parameters: Iterable[Tensor], lr: float) -> AdamW:
    """AdamW as both kinds of model use it; trainings this short need no decay."""
    return AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)


class BaseOptimizer:
    """Muon on the matrices of the layers, AdamW on the rest. AdamW alone needs several times the tokens."""

    MUON_LR, ADAMW_LR = 0.02, 1e-2

    def __init__(self, model: LlamaForCausalLM) -> None:
        named = list(model.named_parameters())
        matrices = {name for name, value in named if "layers" in name and value.ndim == 2}
        self.muon = Muon(value for name, value in named if name in matrices)
        self.adamw = adamw((value for name, value in named if name not in matrices), self.ADAMW_LR)

    def step(self, pace: float) -> None:
        """One step of both at `pace` times their learning rates."""
        self.muon.step(pace * self.MUON_LR)
        self.adamw.param_groups[0]["lr"] = pace * self.ADAMW_LR
        self.adamw.step()
        self.adamw.zero_grad()


class Exam:
    """What the rules go by: skill measured on documents of their own, neither trained on nor tested on."""

    def __init__(self, skills: tuple[str, ...], scale: float) -> None:
        count = scaled(150, scale)
        self.documents = {skill: distinct(skill, "valid", count, Random(f"valid {skill}")) for skill in skills}

    def take(self, model: LlamaForCausalLM) -> dict[str, float]:
        """The model's accuracy at every skill."""
        return {name: accuracy(model, documents) for name, documents in self.documents.items()}
