"""How far a candidate moved, whatever it answers: KL on the guard's prompts, and what the Fisher of its sources predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from evomerge.candidate import live
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.stream import Candidate, Sources
from evomerge.document import nearest
from evomerge.errors import GuardError
from evomerge.guards.ewc import Anchor, Penalties
from evomerge.guards.kl import Reference, divergence, pad, reference
from evomerge.healing.healer import Healer
from evomerge.healing.texts import read_texts
from evomerge.recipe import Recipe, locate
from evomerge.scoring.suite import GuardConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Moves:
    """Measures candidates one by one; what is measured against is read once."""

    guard: GuardConfig
    start: Recipe
    sources: Sources
    healer: Healer  # its live module is borrowed
    _reference: Reference | None = None

    @property
    def asked(self) -> bool:
        """Whether the parent gave its predictions already."""
        return self._reference is not None

    @cached_property
    def penalties(self) -> Penalties | None:
        """What sums the elastic weights guard; None where the experiment has none."""
        ewc, models = self.guard.ewc, {"base": self.start.base, **self.start.sources}
        if ewc is None:
            return None
        return Penalties([Anchor.open(name, self.sources.checkpoint(models[name].location), ewc.fisher) for name in ewc.sources])

    def divergence(
        self, candidate: Candidate, parent: Candidate | None = None, module: PreTrainedModel | None = None
    ) -> dict[str, float]:
        """KL(parent ‖ candidate) in nats over the tokens of the guard's prompts, mean and 95th percentile; the parent is the
        first that was given, or else the base; `module` has the candidate's weights already, if any has."""
        known = self._ask(parent)
        if module is None:
            module = self.healer.module(self.start, candidate.config)
            live.load(candidate, module)
        mean, p95 = divergence(module, known)
        return {"kl": mean, "kl p95": p95}

    def _ask(self, parent: Candidate | None) -> Reference:
        if self._reference is None:
            prompts = self.guard.kl_prompts
            assert prompts is not None
            tokenizer = self.healer.tokenizer(self.start)
            tokens = [tokenizer.encode(text) for text in read_texts(locate(prompts))]
            module = self.healer.parent(self.start.base.location) if parent is None else self._module(parent)
            self._reference = reference(module, pad(tokens))
        return self._reference

    def _module(self, candidate: Candidate) -> PreTrainedModel:
        module = live.module(candidate.config, device=self.sources.device)
        live.load(candidate, module)
        return module


def refuse_missing_fisher(guard: GuardConfig, models: Mapping[str, Checkpoint]) -> None:
    """Raises GuardError where the elastic weights guard names no source, or one without a Fisher of its own."""
    for name in guard.ewc.sources if guard.ewc else ():
        if name not in models:
            raise GuardError(f"guard.ewc: no source {name!r}{nearest(name, tuple(models))}")
        Anchor.open(name, models[name], guard.ewc.fisher if guard.ewc else "")
