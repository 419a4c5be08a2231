"""A live vLLM engine that candidates pass through: what is odd about vLLM stays here and in vllm_worker.py."""

from __future__ import annotations

import contextlib
import gc
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from evomerge.errors import ScoringError
from evomerge.scoring import RANKS
from evomerge.scoring.vllm_crossing import crossing
from evomerge.scoring.vllm_places import stirred
from evomerge.scoring.vllm_start import eager, exchangeable, rope_parameters, start, undisturbed

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from evomerge.candidate.stream import Candidate

MOST_OPTIONS = 128  # tokens that vLLM compares behind one prompt
PROBE = list(range(1, 9))  # tokens that every vocabulary has


class Reading(NamedTuple):
    """What the model thinks of each token of a text."""

    logs: list[float]
    best: list[bool]  # is it what greedy would say?
    leads: Sequence[float] = ()  # over the best other token
    said: Sequence[int] = ()  # by greedy


class Choice(NamedTuple):
    """What the model thinks of single tokens behind a prompt, and what greedy says there."""

    logs: list[float]
    said: int


class Died(ScoringError):
    """A process of the engine is gone: nothing is wrong with the candidate, the engine must be started anew."""


class Engine:
    """One architecture, one largest length; candidates come and go. A process has one: the end of any would be the end of all."""

    _alive: ClassVar[Engine | None] = None

    def __init__(self, config: PretrainedConfig, length: int, tokenizer: str, dtype: str, options: Mapping[str, Any]) -> None:
        if Engine._alive is not None:
            Engine._alive.close()
        Engine._alive = self
        self.length, self.closed = length, False
        self.ranks = math.prod(int(options.get(name, 1)) for name in RANKS)
        self.plain = None if self.ranks == 1 else False  # are candidates merged straight into it? seen at the first of them
        rope = rope_parameters(config)
        self._rope: Mapping[str, Any] | None = None if exchangeable(rope) else rope
        self._folder = tempfile.TemporaryDirectory(prefix="evomerge-vllm-")
        try:
            with undisturbed():
                self._transfers, self._llm = start(Path(self._folder.name), config, length, tokenizer, dtype, options)
        except Exception as error:
            self.close()
            line = " ".join(str(error).split())[:300]
            raise ScoringError(
                f"scoring: vLLM does not start this model ({line}); score it `with: hf`, or see scoring.engine"
            ) from error

    def load(self, candidate: Candidate, config: PretrainedConfig) -> None:
        """The candidate's weights and rotary tables into the engine. Whatever is raised here, the engine is poisoned then."""
        with eager(), self._watched():
            (self._merge if self.plain else self._hand_over)(candidate)
            self._set_rope(rope_parameters(config))
            self.forget()
            if self.plain is None:
                self.plain = self._proven(candidate)

    def _hand_over(self, candidate: Candidate) -> None:
        """By vLLM's own loader, which lays weights out as its kernels want them."""
        with crossing(candidate, self.ranks) as parcel:
            if self._transfers:
                self._llm.start_weight_update()
                self._llm.update_weights({"update_info": parcel})
                self._llm.finish_weight_update()
            else:
                self._llm.collective_rpc("load_candidate", kwargs={"parcel": parcel})
        self._llm.collective_rpc("settle")

    def _merge(self, candidate: Candidate) -> None:
        """Straight into the engine's memory."""
        self._llm.collective_rpc("fill", kwargs={"candidate": candidate})
        self._llm.collective_rpc("settle")

    def _proven(self, held: Candidate) -> bool:
        """Does the engine compute with the very weights that its loader is given? Then both ways it answers alike, to the bit."""
        if not all(self._llm.collective_rpc("find_places", kwargs={"held": held})):
            return False
        answers = [self._answer(way, stirred(held)) for way in (self._merge, self._hand_over)]
        return self._answer(self._hand_over, held) != answers[0] == answers[1]

    def _answer(self, way: Callable[[Candidate], None], candidate: Candidate) -> list[float]:
        way(candidate)
        self.forget()
        return self.read([PROBE], [len(PROBE) - 1])[0].logs

    def forget(self) -> None:
        """The keys and values of the previous candidate: the next would be continued on them where prompts begin alike."""
        if not self._llm.reset_prefix_cache():
            raise ScoringError("scoring: vLLM keeps its prefix cache, some request still runs")

    @property
    def dead(self) -> bool:
        """Has a rank's process ended?"""
        if self.ranks == 1:
            return False
        executor = self._llm.llm_engine.engine_core.engine_core.model_executor
        ranks = getattr(executor, "workers", None) or ()
        return bool(getattr(executor, "is_failed", False)) or not all(rank.proc.is_alive() for rank in ranks)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Whatever goes wrong while a rank is dead goes wrong for that."""
        try:
            yield
        except Exception as error:
            if self.dead:
                raise Died(f"scoring: a process of the engine died ({' '.join(str(error).split())[:100]})") from error
            raise

    def takes(self, config: PretrainedConfig, length: int) -> bool:
        """Can it hold a candidate with this context, and prompts of this length?"""
        rope = rope_parameters(config)
        return not (self.closed or self.dead) and length <= self.length and (exchangeable(rope) or rope == self._rope)

    @property
    def batch(self) -> tuple[int, int]:
        """Tokens and texts that it works on at once, at most."""
        scheduler = self._llm.llm_engine.vllm_config.scheduler_config
        return scheduler.max_num_batched_tokens, scheduler.max_num_seqs

    def _set_rope(self, wanted: Mapping[str, Any] | None) -> None:
        if wanted is not None and wanted != self._rope:
            self._llm.collective_rpc("exchange_rope", kwargs={"parameters": wanted, "length": self.length})
            self._rope = wanted

    # --- questions

    def read(self, texts: Sequence[Sequence[int]], wanted: Sequence[int], *, rivals: bool = False) -> list[Reading]:
        """What the model thinks of the last `wanted` tokens of each text; `rivals`: and of the others it could have said."""
        asked = {"max_tokens": 1, "prompt_logprobs": 2 * rivals, "flat_logprobs": True, "detokenize": False}
        outputs = self._ask(texts, [{**asked, "skip_reading_prefix_cache": False}] * len(texts))
        # what came from the prefix cache was not read again: vLLM leaves those rows as they lay in memory
        holes = [
            i for i, (o, last) in enumerate(zip(outputs, wanted, strict=True)) if o.num_cached_tokens >= len(texts[i]) - last
        ]
        again = self._ask([texts[i] for i in holes], [{**asked, "skip_reading_prefix_cache": True}] * len(holes))
        for i, output in zip(holes, again, strict=True):
            outputs[i] = output
        return [_reading(output.prompt_logprobs, last, 2 * rivals) for output, last in zip(outputs, wanted, strict=True)]

    def choose(self, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[int]]) -> list[Choice]:
        """The log-probabilities of single tokens behind each prompt, in one pass for all options."""
        asked = {"max_tokens": 1, "flat_logprobs": True, "detokenize": False}
        outputs = self._ask(prompts, [{**asked, "logprob_token_ids": list(tokens)} for tokens in options])
        # by place and not by token: rows are filled up with token 0 at log-probability -inf
        return [
            Choice(output.outputs[0].logprobs.logprobs[1 : 1 + len(tokens)], output.outputs[0].token_ids[0])
            for output, tokens in zip(outputs, options, strict=True)
        ]

    def write(self, prompts: Sequence[Sequence[int]], wishes: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """What the model writes behind each prompt; wishes are arguments of vLLM's SamplingParams."""
        return [list(output.outputs[0].token_ids) for output in self._ask(prompts, wishes)]

    def _ask(self, prompts: Sequence[Sequence[int]], wishes: Sequence[Mapping[str, Any]]) -> list[Any]:
        from vllm import SamplingParams

        params = [SamplingParams(**{"temperature": 0.0, **wish}) for wish in wishes]
        with eager(), self._watched():
            return list(self._llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False))

    def close(self) -> None:
        """Ends the engine; without the clean-up the next one in this process would not start."""
        if self.closed:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.closed, Engine._alive = True, None
        if hasattr(self, "_llm"):
            self._llm.llm_engine.engine_core.shutdown()
            del self._llm
        cleanup_dist_env_and_memory()
        gc.collect()
        self._folder.cleanup()


def _reading(flat: Any, wanted: int, rivals: int) -> Reading:
    """From vLLM's flat lists: for each token but the first, itself and then the `rivals` most likely ones."""
    width = 1 + rivals
    start = len(flat.logprobs) - wanted * width
    logs, ids = flat.logprobs[start::width], flat.token_ids[start::width]
    best = [rank == 1 for rank in flat.ranks[start::width]]
    if not rivals:
        return Reading(logs, best)
    first, second = flat.logprobs[start + 1 :: width], flat.logprobs[start + 2 :: width]
    said = flat.token_ids[start + 1 :: width]
    leads = [log - (b if token == top else a) for log, token, top, a, b in zip(logs, ids, said, first, second, strict=True)]
    return Reading(logs, best, leads, said)
