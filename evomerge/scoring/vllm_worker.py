"""What vLLM's workers learn from us: a candidate's weights and its rotary tables, exchanged while the engine lives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from evomerge.scoring.vllm_crossing import Arrivals, Parcel
from evomerge.scoring.vllm_places import Places, fill, find_places

if TYPE_CHECKING:
    from torch import nn

    from evomerge.candidate.stream import Candidate

BACKEND = "evomerge"  # of vLLM's weight transfer


def register_transfer() -> bool:
    """Makes our backend known to this process' vLLM; False where this vLLM has no such interface."""
    try:
        from vllm import LLM
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as Factory
    except ImportError:
        return False
    if not all(hasattr(LLM, name) for name in ("start_weight_update", "update_weights", "finish_weight_update")):
        return False
    with contextlib.suppress(ValueError):  # it is known already
        Factory.register_engine(BACKEND, "evomerge.scoring.vllm_transfer", "CandidateTransfer")
    return True


register_transfer()  # for vLLM imports this file in each of its processes, and nothing else of ours


class CandidateWorker:
    """Mixed into the worker by `worker_extension_cls`; called by `llm.collective_rpc`."""

    if TYPE_CHECKING:  # what vLLM's own worker brings
        device: torch.device
        places: Places
        reload_weights: Any
        model_runner: Any
        vllm_config: Any

    def make_room(self) -> None:
        """For what a later stage of a pipeline is handed: the warm-up that makes it is left out by the CPU backend."""
        from vllm.distributed.parallel_state import get_pp_group

        runner = self.model_runner
        if not get_pp_group().is_first_rank and getattr(runner, "intermediate_tensors", True) is None:
            size = {"batch_size": runner.max_num_tokens, "dtype": runner.model_config.dtype, "device": self.device}
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(**size)

    def load_candidate(self, parcel: Parcel) -> None:
        """Where vLLM has no weight transfer."""
        if not hasattr(self, "arrivals"):
            self.arrivals = Arrivals(self.device)
        self.reload_weights(weights_iterator=self.arrivals.unpack(parcel))

    def find_places(self, held: Candidate) -> bool:
        """Whether candidates can be merged straight into this engine, which holds one; only for an engine of one process."""
        if found := find_places(self._model, held):
            self.places = found
        return bool(found)

    def fill(self, candidate: Candidate) -> None:
        """The candidate straight into its places."""
        fill(self.places, candidate)

    def settle(self) -> None:
        """What is left to do when all weights have come."""
        self.repack_tied_heads()
        self.wipe_cache()

    def repack_tied_heads(self) -> None:
        """The CPU backend computes with a packed copy of each weight; that of a tied head, which no tensor names, stays old."""
        for head in tied_heads(self._model):
            head.quant_method.process_weights_after_loading(head)

    @torch.inference_mode()
    def wipe_cache(self) -> None:
        """Zeroes all keys and values: a NaN left behind the end of the next text is multiplied by 0, and stays NaN."""
        for cache in self.model_runner.kv_caches:
            cache.zero_()

    def exchange_rope(self, parameters: Mapping[str, Any], length: int) -> int:
        """Gives every attention the tables of these rope parameters, for `length` positions; tells how many they have."""
        from vllm.config import set_current_vllm_config

        attentions: list[Any] = [module for module in self._model.modules() if hasattr(module, "rotary_emb")]
        with set_current_vllm_config(self.vllm_config), _fresh_tables():
            for module in attentions:
                module.rotary_emb = _rope(module.rotary_emb, parameters, length)
        return min(len(module.rotary_emb.cos_sin_cache) for module in attentions)

    @property
    def _model(self) -> nn.Module:
        model: nn.Module = self.model_runner.get_model()
        return model


def tied_heads(model: nn.Module) -> Iterator[Any]:
    """Heads without a tensor of their own: they compute with the weight of an embedding."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    parts = [part for part in model.modules() if isinstance(part, VocabParallelEmbedding)]
    embeddings = {id(part.weight) for part in parts if not isinstance(part, ParallelLMHead)}
    yield from (part for part in parts if isinstance(part, ParallelLMHead) and id(part.weight) in embeddings)


@contextlib.contextmanager
def _fresh_tables() -> Iterator[None]:
    """vLLM keeps every table it ever made, to be shared with other engines too; ours live as long as their candidate."""
    from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT

    kept = dict(_ROPE_DICT)
    _ROPE_DICT.clear()
    try:
        yield
    finally:
        _ROPE_DICT.clear()
        _ROPE_DICT.update(kept)


def _rope(old: Any, parameters: Mapping[str, Any], length: int) -> Any:
    from vllm.model_executor.layers.rotary_embedding import get_rope

    dtype, device = old.cos_sin_cache.dtype, old.cos_sin_cache.device
    with torch.device(device):
        rope = get_rope(old.head_size, length, old.is_neox_style, dict(parameters), dtype)
        if parameters.get("rope_type") == "yarn":
            _lengthen(rope, length)
    return rope


def _lengthen(rope: Any, length: int) -> None:
    """Tables of YaRN end at original · factor; behind their end the kernel would read whatever lies there in memory."""
    table = rope.cos_sin_cache
    if len(table) < length:
        positions = torch.arange(len(table), length, dtype=torch.float32)
        angles = torch.outer(positions, rope._compute_inv_freq(rope.scaling_factor))
        more = torch.cat((angles.cos(), angles.sin()), -1) * rope.mscale
        rope.cos_sin_cache = torch.cat((table, more.to(table.dtype)))
