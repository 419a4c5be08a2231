"""Scores from one live vLLM engine: candidates are exchanged inside it, and it starts once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs

from evomerge.candidate import live
from evomerge.candidate.checkpoint import Checkpoint
from evomerge.errors import EvomergeError, ScoringError
from evomerge.scoring.greedy import Answer, Line, Stops
from evomerge.scoring.harness import Harness
from evomerge.scoring.hf import LiveLM
from evomerge.scoring.scores import Scores
from evomerge.scoring.tokenizer import load_tokenizer
from evomerge.scoring.vllm_engine import MOST_OPTIONS, Died, Engine, Reading
from evomerge.scoring.vllm_limits import refuse_missing, refuse_model, refuse_options
from evomerge.scoring.vllm_start import version

if TYPE_CHECKING:
    from evomerge.candidate.stream import Candidate
    from evomerge.scoring import ScoringConfig
    from evomerge.scoring.suite import GuardConfig, Suite

LONGEST_START = 4096  # tokens; room for more is made when a prompt needs it
DRAWING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class VllmScorer:
    """One live engine; a new one only where it is poisoned or too short, or where the architecture changes."""

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
        refuse_missing()
        refuse_options(config.engine)
        if model is not None:
            refuse_model(Checkpoint.open(model).config, config.engine)
        self.config, self.model = config, model
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        names = [*suite.tasks, *(guard.tasks if guard else ())]
        self.harness = Harness(names, suite.include, config.lm_eval, config.allow_code)
        self.clock = self.harness.clock
        if guard:
            self.harness.learn_guards(guard)
        self.engine: Engine | None = None
        self.starts = 0  # engines started so far
        self._batch: tuple[int, int] | None = None  # tokens and texts at once, where memory was short
        self._skeleton: Any = None  # the transformers module of the architecture, without weights
        self._candidate: Candidate | None = None
        self._lm: EngineLM | None = None

    def catalogue(self) -> dict[str, list[str]]:
        return self.harness.catalogue()

    def check(self, documents: Mapping[str, Sequence[int]]) -> None:
        """Raises ScoringError where a document, with the longest answer it allows, is longer than max_model_len."""
        room = self.config.engine.get("max_model_len")
        if not room or self.model is None:
            return
        skeleton = live.module(Checkpoint.open(self.model).config, device="meta")
        lm = EngineLM(skeleton, load_tokenizer(self.model), self.ready)
        needs = {(q.task, q.doc): max(map(lm.room, q.requests)) for q in self.harness.questions(lm, documents)}
        (task, doc), most = max(needs.items(), key=lambda item: item[1])
        if most > room:
            raise ScoringError(
                f"scoring.engine: max_model_len {room} is too short, document {doc} of {task} needs {most} tokens with its"
                " answer; raise it or leave it out"
            )

    def contents(self) -> dict[str, list[str]]:
        return self.harness.contents()

    def suite_fingerprint(self) -> str:
        return self.harness.fingerprint(version(), self.config.dtype, json.dumps(dict(self.config.engine), sort_keys=True))

    def load(self, candidate: Candidate) -> None:
        """The candidate into the engine; one that does not match its own config is refused before any tensor is loaded."""
        self._fit(candidate)
        self._candidate = candidate
        try:
            self._exchange(self._length)
        except Died:
            self._exchange(self._length)

    def score(self, documents: Mapping[str, Sequence[int]]) -> Scores:
        """Where memory does not suffice, once more in batches of half the size; where a rank died, in a new engine."""
        try:
            return self._score(documents)
        except Exception as error:
            if not (_short_of_memory(error) or isinstance(error, Died)):
                raise
        try:
            return self._score(documents)
        except Exception as error:
            if _short_of_memory(error):
                raise ScoringError(
                    f"scoring: out of memory, in smaller batches too ({str(error)[:100]}); lower scoring.batch or max_model_len"
                ) from error
            if isinstance(error, Died):
                raise ScoringError(f"{error}, in a new one too; is there memory enough?") from error
            raise

    def _score(self, documents: Mapping[str, Sequence[int]]) -> Scores:
        try:
            return self.harness.score(self.lm, documents)
        except EvomergeError:
            raise
        except BaseException as error:  # half-answered requests are left in the engine
            if _short_of_memory(error) and self.engine:
                tokens, texts = self.engine.batch
                self._batch = tokens // 2, max(texts // 2, 1)
            self._stop()
            raise

    @property
    def lm(self) -> EngineLM:
        if self._candidate is None:
            raise ScoringError("scoring: no model is loaded yet; call load(candidate) first")
        if self._lm is None:
            self._lm = EngineLM(self._skeleton, load_tokenizer(self.model), self.ready)
        return self._lm

    def close(self) -> None:
        self._stop()
        self._lm = self._candidate = self._skeleton = None

    def ready(self, length: int, wished: int = 0) -> Engine:
        """The engine, with the candidate in it and room for `length` tokens; for `wished` ones where no limit is set."""
        limit = self.config.engine.get("max_model_len")
        if limit and length > limit:
            raise ScoringError(
                f"scoring.engine: max_model_len {limit} is too short, a document needs {length} tokens; raise it or leave it out"
            )
        length = length if limit else max(length, wished)
        if self.engine is None or not self.engine.takes(self._skeleton.config, length):
            self._exchange(max(self._length, 1 << (length - 1).bit_length()))
        assert self.engine is not None
        return self.engine

    # --- the engine

    def _fit(self, candidate: Candidate) -> None:
        """The skeleton of this candidate; what does not fit into it is refused."""
        config, skeleton = live.read_config(candidate.config), self._skeleton
        if skeleton is None or not live.same_model(config, skeleton.config):
            refuse_model(candidate.config, self.config.engine)
            skeleton = live.module(candidate.config, device="meta")
        live.check(candidate, skeleton)
        if skeleton is not self._skeleton:
            self._stop()
            self._skeleton, self._lm = skeleton, None
        for key in live.ROPE_KEYS:
            setattr(skeleton.config, key, getattr(config, key, None))

    @property
    def _length(self) -> int:
        """Tokens that an engine must have room for: what it had, or the model's own context where that is not too much."""
        given, own = self.config.engine.get("max_model_len"), getattr(self._skeleton.config, "max_position_embeddings", None)
        return int(given or (self.engine.length if self.engine else min(own or LONGEST_START, LONGEST_START)))

    def _exchange(self, length: int) -> None:
        """Loads the candidate. An engine in which that failed is poisoned: vLLM has no way back, the next one is started anew."""
        assert self._candidate is not None
        config = self._skeleton.config
        if self.engine and not self.engine.takes(config, length):
            self._stop()
        try:
            with self.clock("swap"):
                if self.engine is None:
                    self.starts += 1
                    self.engine = Engine(config, length, str(self.model), self.config.dtype, self._options(length))
                self.engine.load(self._candidate, config)
        except BaseException:
            self._stop()
            raise

    def _options(self, length: int) -> dict[str, Any]:
        batch = {"max_num_batched_tokens": self.config.batch} if self.config.batch else {}
        tokens, texts = self._batch or (0, 0)
        smaller = {"max_num_batched_tokens": max(tokens, length), "max_num_seqs": texts} if texts else {}
        return {**batch, **self.config.engine, **smaller}

    def _stop(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = None


def _short_of_memory(error: BaseException) -> bool:
    """On a GPU as on a CPU, where torch says it in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class EngineLM(LiveLM):
    """The engine as lm-eval sees it: prompts, drafts and stops are those of the `hf` scorer, only the model is another."""

    def __init__(self, skeleton: Any, tokenizer: Any, ready: Callable[..., Engine]) -> None:
        super().__init__(skeleton, tokenizer)
        self.ready: Callable[..., Engine] = ready

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._answer(self._planned(requests, "loglikelihood", lambda: [self._pair(*r.args) for r in requests]))

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        return self._answer([(prompt, continuation) for _, prompt, continuation in requests])

    def room(self, request: Any) -> int:
        """Tokens that a request may come to with its answer."""
        if request.request_type == "generate_until":
            context, kwargs = request.args
            return len(self.tok_encode(context)) + self._options(kwargs)[0].limit
        if request.request_type == "loglikelihood":
            return 1 + sum(map(len, self._pair(*request.args)))
        return 0  # whole texts are read in windows

    def _answer(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Single tokens behind one prompt are asked together; anything longer is read, one text after the other."""
        behind: dict[tuple[int, ...], list[int]] = {}
        for i, (prompt, _) in enumerate(pairs):
            behind.setdefault(tuple(prompt), []).append(i)
        single = [group for group in behind.values() if len(group) <= MOST_OPTIONS and all(len(pairs[i][1]) == 1 for i in group)]
        found = self._choose(pairs, single)
        rest = [i for i in range(len(pairs)) if i not in found]
        readings = self._read([pairs[i][0] for i in rest], [pairs[i][1] for i in rest])
        found |= {i: (sum(reading.logs), all(reading.best)) for i, reading in zip(rest, readings, strict=True)}
        return [found[i] for i in range(len(pairs))]

    def _choose(self, pairs: Sequence[tuple[list[int], list[int]]], groups: Sequence[list[int]]) -> dict[int, tuple[float, bool]]:
        if not groups:
            return {}
        prompts = [pairs[group[0]][0] for group in groups]
        options = [[pairs[i][1][0] for i in group] for group in groups]
        choices = self.ready(1 + max(map(len, prompts))).choose(prompts, options)
        return {
            i: (log, token == choice.said)
            for group, tokens, choice in zip(groups, options, choices, strict=True)
            for i, token, log in zip(group, tokens, choice.logs, strict=True)
        }

    def _read(self, prompts: list[list[int]], continuations: list[list[int]], *, rivals: bool = False) -> list[Reading]:
        if not prompts:
            return []
        texts = [prompt + continuation for prompt, continuation in zip(prompts, continuations, strict=True)]
        engine = self.ready(1 + max(map(len, texts)))  # vLLM writes one token behind each text
        return engine.read(texts, list(map(len, continuations)), rivals=rivals)

    def generate_with_drafts(self, requests: Sequence[Any], drafts: Sequence[str | None]) -> list[Answer]:
        """Reads the drafts first: what a draft has right needs not be written token by token."""
        texts = self._planned(requests, tuple(drafts), lambda: self._texts(requests, drafts))
        lines = [Line(text.draft, text.stops) for text in texts]
        drafted = [i for i, text in enumerate(texts) if text.draft]
        readings = self._read([texts[i].prompt for i in drafted], [texts[i].draft for i in drafted], rivals=True)
        for i, reading in zip(drafted, readings, strict=True):
            _take_draft(lines[i], reading)
        self._write([(text, line) for text, line in zip(texts, lines, strict=True) if not line.done])
        return [Answer(line.stops.text(line.written), line.margin) for line in lines]

    def _write(self, going: Sequence[tuple[_Text, Line]]) -> None:
        if not going:
            return
        prompts = [text.prompt + line.written for text, line in going]
        wished = max(len(text.prompt) + text.stops.limit for text, _ in going)
        engine = self.ready(1 + max(map(len, prompts)), wished)
        for (_, line), said in zip(going, engine.write(prompts, [text.wish(line) for text, line in going]), strict=True):
            line.take(said, said)
            if not line.done:
                raise ScoringError(
                    f"scoring.engine: max_model_len {engine.length} cuts an answer of up to {line.stops.limit} tokens"
                    " short; raise it, leave it out, or set max_gen_toks in scoring.lm_eval.gen_kwargs"
                )

    def _texts(self, requests: Sequence[Any], drafts: Sequence[str | None]) -> list[_Text]:
        asked: Counter[int] = Counter()
        texts = []
        for request, draft in zip(requests, drafts, strict=True):
            context, kwargs = request.args
            stops, options = self._options(kwargs)
            prompt = self.tok_encode(context)
            if options:  # drawn anew for each repeat, and for each document alike in every run
                options["seed"] = request.doc_id * 1000 + asked[id(request)]
                asked[id(request)] += 1
            texts.append(_Text(prompt, [] if options else self.draft(context, prompt, draft), stops, options))
        return texts

    def _options(self, kwargs: Mapping[str, Any]) -> tuple[Stops, dict[str, Any]]:
        """When a text ends, and how its tokens are drawn where it is not greedy."""
        options = normalize_gen_kwargs(dict(kwargs), self.max_gen_toks)
        stops = self._stops({key: options.pop(key) for key in ("until", "max_gen_toks") if key in options})
        sampled = options.pop("do_sample", False)
        options = {key: value for key, value in options.items() if value is not None}
        if strays := options.keys() - DRAWING:
            raise ScoringError(f"scoring: gen_kwargs {min(strays)!r} is not known to vLLM; leave it out, or score `with: hf`")
        assert stops is not None
        kept = DRAWING if sampled else ("repetition_penalty",)
        return stops, {key: value for key, value in options.items() if key in kept}


@dataclass
class _Text:
    """A request for text."""

    prompt: list[int]
    draft: list[int]
    stops: Stops
    options: Mapping[str, Any]

    def wish(self, line: Line) -> dict[str, Any]:
        """As vLLM's sampling parameters; it may go on too far, the line takes what is before its stop."""
        stops = self.stops
        ends = {"stop": [s for s in stops.strings if s], "stop_token_ids": sorted(stops.ends), "ignore_eos": True}
        return {**ends, "max_tokens": stops.limit - len(line.written), **self.options}


def _take_draft(line: Line, reading: Reading) -> None:
    line.take(line.draft[:-1], reading.said)
    line.margin = min(reading.leads)
