"""Scores from a live transformers model: candidates are written into one module, and only new documents are asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, resolve_max_length

from evomerge.candidate import live
from evomerge.errors import ScoringError
from evomerge.scoring.forward import Batch, Forward, Tree, View, usable
from evomerge.scoring.greedy import Answer, Line, Stops, write
from evomerge.scoring.harness import Harness
from evomerge.scoring.prefixes import Prefixes, pack
from evomerge.scoring.scores import Scores
from evomerge.scoring.tokenizer import NO_LIMIT, load_tokenizer

if TYPE_CHECKING:
    from evomerge.candidate.stream import Candidate
    from evomerge.scoring import ScoringConfig
    from evomerge.scoring.suite import GuardConfig, Suite

TOKENS = {"cpu": 1024, "cuda": 8192}  # of one forward pass: on a CPU a batch should stay in its cache
PLAIN_BATCH = 16  # rows, where HFLM's own paths are taken
PLANS = 64
SURVEY = 512  # prompts that are looked at for common beginnings
T = TypeVar("T")


class HfScorer:
    """One live module, on the CPU or a GPU."""

    def __init__(
        self,
        config: ScoringConfig,
        suite: Suite,
        guard: GuardConfig | None = None,
        *,
        model: Path | None = None,
        root: Path | None = None,
        module: Any = None,
    ) -> None:
        self.config, self.model, self.module = config, model, module
        self.device = _device(config.device) if module is None else module.device
        names = [*suite.tasks, *(guard.tasks if guard else ())]
        self.harness = Harness(names, suite.include, config.lm_eval, config.allow_code)
        self.clock = self.harness.clock
        if guard:
            self.harness.learn_guards(guard)
        self._lm: LiveLM | None = None

    def catalogue(self) -> dict[str, list[str]]:
        return self.harness.catalogue()

    def check(self, documents: Mapping[str, Sequence[int]]) -> None:
        """Texts of any length are taken."""

    def contents(self) -> dict[str, list[str]]:
        return self.harness.contents()

    def suite_fingerprint(self) -> str:
        return self.harness.fingerprint("hf", self.config.dtype, str(self.device))

    def load(self, candidate: Candidate) -> None:
        if self.module is not None and not live.same_model(live.read_config(candidate.config), self.module.config):
            self.close()  # a stack of another depth has a module of its own
        if self.module is None:
            self.module = live.module(candidate.config, getattr(torch, self.config.dtype), self.device)
        live.load(candidate, self.module)
        if self._lm is not None:
            self._lm.prefixes.forget()

    def score(self, documents: Mapping[str, Sequence[int]]) -> Scores:
        """Scores of whatever weights the module has now."""
        return self.harness.score(self.lm, documents)

    @property
    def lm(self) -> LiveLM:
        if self.module is None:
            raise ScoringError("scoring: no model is loaded yet; call load(candidate) first")
        if self._lm is None:
            self._lm = LiveLM(self.module, load_tokenizer(self.model), self.config.batch or TOKENS[self.device.type])
            self._lm.learn(self.harness.sample(self._lm, SURVEY))
        return self._lm

    def close(self) -> None:
        self._lm = self.module = None


class LiveLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's HFLM over a live module, with the same answers sooner: see forward.py and greedy.py."""

    def __init__(self, module: Any, tokenizer: Any, tokens: int = TOKENS["cpu"]) -> None:
        super().__init__(pretrained=module, tokenizer=tokenizer, batch_size=PLAIN_BATCH, max_length=NO_LIMIT)
        self.tokens = tokens
        self.fast = usable(module)
        self.prefixes = Prefixes(tokens)
        self._plans: dict[tuple[Any, ...], Any] = {}
        self._endings: dict[str, Stops | None] = {}
        self._encode = functools.lru_cache(maxsize=1 << 16)(super().tok_encode)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        found: list[int] = self._encode(string, add_special_tokens, **kwargs)
        return found

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        if not self.fast:
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            return answers
        plan = self._planned(requests, "loglikelihood", lambda: _Choices.of([self._pair(*r.args) for r in requests], self))
        return plan.run(Forward(self.module))

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Prompt and continuation, tokenised as TemplateLM.loglikelihood does."""
        if context:
            pair: tuple[list[int], list[int]] = self._encode_pair(context, continuation)
            return pair
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        return (tokens[:1], tokens[1:]) if tokens[0] == self.prefix_token_id else ([self.prefix_token_id], tokens)

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        if not self.fast:
            answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *args, **kwargs)
            return answers
        return _Choices.of([(prompt, continuation) for _, prompt, continuation in requests], self).run(Forward(self.module))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of the length that the model was made for."""
        self._max_length = resolve_max_length(self.module.config, self.tokenizer)
        try:
            answers: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self._max_length = NO_LIMIT
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [answer.text for answer in self.generate_with_drafts(requests, [None] * len(requests))]

    def generate_with_drafts(self, requests: Sequence[Any], drafts: Sequence[str | None]) -> list[Answer]:
        """What `generate_until` gives, sooner where the answer is the draft."""
        stops = [self._stops(request.args[1]) for request in requests]
        greedy = [stop for stop in stops if stop is not None]
        if not self.fast or len(greedy) < len(stops):
            return [Answer(text, None) for text in super().generate_until(list(requests), disable_tqdm=True)]
        plan = self._planned(requests, tuple(drafts), lambda: _Texts.of(requests, drafts, greedy, self))
        return plan.run(Forward(self.module))

    def _stops(self, kwargs: Mapping[str, Any]) -> Stops | None:
        key = repr(kwargs)
        if key not in self._endings:
            self._endings[key] = _stops(self, kwargs)
        return self._endings[key]

    def draft(self, context: str, prompt: list[int], draft: str | None) -> list[int]:
        """The draft's tokens, where they follow the prompt's without changing them."""
        whole = self.tok_encode(context + draft) if draft else prompt
        return whole[len(prompt) :] if whole[: len(prompt)] == prompt else []

    def learn(self, contexts: Sequence[str]) -> None:
        """Looks for beginnings that prompts like these share."""
        if self.fast:
            self.prefixes.learn([self.tok_encode(context) for context in contexts])

    def _planned(self, requests: Sequence[Any], kind: Any, make: Callable[[], T]) -> T:
        """The same questions are asked of every candidate: what they become as tensors is kept."""
        key = (kind, *map(id, requests))
        if key not in self._plans:
            if len(self._plans) >= PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = (make(), list(requests))  # the requests stay alive, and their ids theirs
        plan: T = self._plans[key][0]
        return plan

    @property
    def module(self) -> Any:
        return self.model


@dataclass
class _Plan:
    """Trees in batches; what is left to do for a candidate is to run them."""

    batches: list[Batch]
    rows: list[list[int]]  # for each batch, which tree each row is
    prefixes: Prefixes

    @classmethod
    def of(cls, trees: Sequence[Tree], lm: LiveLM) -> _Plan:
        lm.prefixes.learn([tree.prompt for tree in trees])
        for tree in trees:
            tree.shared = len(lm.prefixes.find(tree.prompt))
        rows = []
        for some in (True, False):  # rows without a prefix need no mask: they go by themselves
            members = [i for i, tree in enumerate(trees) if bool(tree.shared) == some]
            sizes = [len(trees[i].grow().tokens) for i in members]
            rows += [[members[i] for i in batch] for batch in pack(sizes, lm.tokens)]
        return cls([Batch([trees[i] for i in batch], lm.device) for batch in rows], rows, lm.prefixes)

    def each(self, forward: Forward) -> Iterator[tuple[Batch, list[int], View]]:
        for batch, rows in zip(self.batches, self.rows, strict=True):
            yield batch, rows, View(before=self.prefixes.before(forward, batch.trees))


@dataclass
class _Choices:
    """Log-likelihood requests as trees: one for each prompt."""

    plan: _Plan
    places: list[tuple[int, int]]  # for each request, its tree and which of its continuations

    @classmethod
    def of(cls, pairs: Sequence[tuple[list[int], list[int]]], lm: LiveLM) -> _Choices:
        trees: dict[tuple[int, ...], Tree] = {}
        places = []
        for prompt, continuation in pairs:
            tree = trees.setdefault(tuple(prompt), Tree(prompt))
            places.append((tuple(prompt), len(tree.continuations)))
            tree.continuations.append(continuation)
        index = {prompt: i for i, prompt in enumerate(trees)}
        return cls(_Plan.of(list(trees.values()), lm), [(index[prompt], which) for prompt, which in places])

    def run(self, forward: Forward) -> list[tuple[float, bool]]:
        found: dict[tuple[int, int], tuple[float, bool]] = {}
        for batch, rows, view in self.plan.each(forward):
            answers = iter(batch.score(forward, view))
            for i, tree in zip(rows, batch.trees, strict=True):
                found |= {(i, which): next(answers) for which in range(len(tree.continuations))}
        return [found[place] for place in self.places]


@dataclass
class _Texts:
    """Requests for text, each a tree with its draft."""

    plan: _Plan
    drafts: list[list[int]]
    stops: list[Stops]

    @classmethod
    def of(cls, requests: Sequence[Any], drafts: Sequence[str | None], stops: list[Stops], lm: LiveLM) -> _Texts:
        prompts = [lm.tok_encode(request.args[0]) for request in requests]
        named = zip(requests, prompts, drafts, strict=True)
        tokens = [lm.draft(request.args[0], prompt, draft) for request, prompt, draft in named]
        trees = [Tree(prompt, [draft or [0]]) for prompt, draft in zip(prompts, tokens, strict=True)]
        return cls(_Plan.of(trees, lm), tokens, stops)

    def run(self, forward: Forward) -> list[Answer]:
        lines = [Line(draft, stops) for draft, stops in zip(self.drafts, self.stops, strict=True)]
        write(forward, ((batch, view, [lines[i] for i in rows]) for batch, rows, view in self.plan.each(forward)))
        return [Answer(line.stops.text(line.written), line.margin) for line in lines]


def _stops(lm: LiveLM, kwargs: Mapping[str, Any]) -> Stops | None:
    """When a greedy text ends; None where something else than greedy text is asked."""
    options = normalize_gen_kwargs(dict(kwargs), lm.max_gen_toks)
    end = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    strings = tuple(handle_stop_sequences(options.pop("until", None), eos=end))
    limit = options.pop("max_gen_toks")
    if options.pop("do_sample", False) or {key for key, value in options.items() if value is not None} - {"temperature"}:
        return None
    ends = {lm.eot_token_id, *_listed(lm.module.generation_config.eos_token_id)}
    ends |= {lm.tokenizer.convert_tokens_to_ids(stop) for stop in strings if stop in lm.tokenizer.all_special_tokens}
    return Stops(lm.tokenizer, strings, frozenset(ends - {None}), limit)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ScoringError(f"scoring.device: {name!r} is not there ({reason}); use auto, cpu or cuda") from None
