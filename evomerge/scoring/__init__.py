"""A candidate becomes scores: one row per document, from whatever scorer the experiment names."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.document import Block, Place, describe
from evomerge.errors import DocumentError, ScoringError
from evomerge.scoring.scores import Row, Scores
from evomerge.scoring.stopwatch import Stopwatch
from evomerge.scoring.suite import GuardConfig, Splits, Suite, split

if TYPE_CHECKING:
    from evomerge.candidate.stream import Candidate

__all__ = ["SCORERS", "GuardConfig", "Row", "Scorer", "Scores", "ScoringConfig", "Splits", "Suite", "make_scorer", "split"]

SCORERS = {
    "hf": "evomerge.scoring.hf:HfScorer",
    "vllm": "evomerge.scoring.vllm:VllmScorer",
    "function": "evomerge.scoring.function:FunctionScorer",
}
RANKS = ("tensor_parallel_size", "pipeline_parallel_size")  # of vLLM's arguments
DTYPES = ("float32", "bfloat16", "float16")
LM_EVAL = ("num_fewshot", "apply_chat_template", "fewshot_as_multiturn", "system_instruction", "gen_kwargs", "metadata")


class Scorer(Protocol):
    """Holds one live model; `load` puts a candidate's weights into it, `score` asks it documents."""

    clock: Stopwatch  # counts the seconds in the model as "engine"

    def catalogue(self) -> dict[str, list[str]]:
        """The hash of every document of every task, without any model."""

    def check(self, documents: Mapping[str, Sequence[int]]) -> None:
        """Raises ScoringError where one of these documents is beyond the scorer; needs no model either."""

    def contents(self) -> dict[str, list[str]]:
        """The same without the task: documents that two tasks share have one hash."""

    def suite_fingerprint(self) -> str:
        """What decides a score apart from the candidate: task files, data, few-shot, template, engine and dtype."""

    def load(self, candidate: Candidate) -> None: ...

    def score(self, documents: Mapping[str, Sequence[int]]) -> Scores: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ScoringConfig:
    """The `scoring` block: which scorer, and how it runs."""

    scorer: str = "hf"  # `with` in the file
    dtype: str = "float32"
    batch: int | None = None  # tokens a forward pass; None: what suits the device
    device: str = "auto"
    engine: Mapping[str, Any] = field(default_factory=dict, hash=False)  # vLLM's own arguments
    lm_eval: Mapping[str, Any] = field(default_factory=dict, hash=False)
    allow_code: bool = False  # may tasks run code that the model wrote?
    function: str | None = None
    documents: str | None = None

    @classmethod
    def from_data(cls, data: object, place: Place) -> ScoringConfig:
        """A scoring block from plain data; raises DocumentError."""
        block = Block(data, place, ["with", *(name for name in cls.__dataclass_fields__ if name != "scorer")])
        config = cls(
            scorer=block.text("with", cls.scorer, among=tuple(SCORERS)),
            dtype=block.text("dtype", cls.dtype, among=DTYPES),
            batch=block.integer("batch", None, low=1),
            device=block.text("device", cls.device),
            engine=block.mapping("engine", {}),
            lm_eval=_lm_eval(block),
            allow_code=block.flag("allow_code", False),
            function=_reference(block, "function"),
            documents=_reference(block, "documents"),
        )
        _refuse_strays(config, place)
        return config

    def refuse_longer(self, base: Mapping[str, Any], extended: Mapping[str, Any]) -> None:
        """Raises ScoringError where a context was extended beyond the engine's room; one longer to begin with is never filled."""
        room = self.engine.get("max_model_len")
        original, length = (config.get("max_position_embeddings") for config in (base, extended))
        if room and original and length and original <= room < length:
            raise ScoringError(
                f"scoring.engine: max_model_len {room} is shorter than the context of {length} tokens that recipe.context allows;"
                f" raise it to {length}, or lower the factor: the largest that fits is {room / original:g}"
            )

    def refuse_no_template(self, template: str | None, model: Path) -> None:
        """Raises ScoringError where documents are to be put as a conversation and the base has no `template` for one."""
        if self.lm_eval.get("apply_chat_template") is True and not template:
            raise ScoringError(
                f"scoring.lm_eval.apply_chat_template: {model} has no chat template; set it to false, or put one beside the"
                " model (chat_template.jinja)"
            )

    @property
    def ranks(self) -> int:
        """Processes that one engine is spread over, each with a device of its own."""
        return math.prod(int(self.engine.get(name, 1)) for name in RANKS)

    def to_data(self) -> dict[str, Any]:
        data = {"with": self.scorer, **vars(self), "engine": dict(self.engine), "lm_eval": dict(self.lm_eval)}
        return {key: value for key, value in data.items() if key != "scorer" and value not in (None, {})}


def make_scorer(
    config: ScoringConfig,
    suite: Suite,
    guard: GuardConfig | None = None,
    *,
    model: Path | None = None,
    root: Path | None = None,
    module: Any = None,
) -> Scorer:
    """The scorer that the experiment names.

    `model` is the directory of the base, whose tokenizer and architecture every candidate shares; `root` the folder of the
    experiment file, where a user's own functions are imported from; `module` a live transformers model to score in, if any.
    Raises MissingExtra, with the pip commands, where the package behind the scorer is not installed.
    """
    module_name, _, class_name = SCORERS[config.scorer].partition(":")
    scorer = getattr(importlib.import_module(module_name), class_name)
    made: Scorer = scorer(config, suite, guard, model=model, root=root, module=module)
    return made


def _lm_eval(block: Block) -> Mapping[str, Any]:
    inner = Block(block.mapping("lm_eval", {}), block.place / "lm_eval", LM_EVAL)
    inner.integer("num_fewshot", None)
    inner.flag("fewshot_as_multiturn", None)
    inner.text("system_instruction", None)
    inner.mapping("gen_kwargs", None)
    inner.mapping("metadata", None)
    if not isinstance(inner.get("apply_chat_template", False), bool | str):
        raise DocumentError(f"{inner.place / 'apply_chat_template'}: expected true, false or the name of a template")
    return {key: value for key, value in inner.data.items() if value is not None}


def _reference(block: Block, key: str) -> str | None:
    """A `module:function` of the user's."""
    value: str | None = block.text(key, None)
    if value is not None and not all(part.strip() for part in value.partition(":")):
        raise DocumentError(f"{block.place / key}: expected module:function, found {describe(value)}")
    return value


def _refuse_strays(config: ScoringConfig, place: Place) -> None:
    if config.engine and config.scorer != "vllm":
        raise DocumentError(
            f"{place / 'engine'}: belongs to `with: vllm`, here it is `with: {config.scorer}`; remove one of the two"
        )
    if config.scorer == "function":
        for key in ("function", "documents"):
            if getattr(config, key) is None:
                raise DocumentError(f"{place}: `with: function` needs {key!r}: a module:function beside the experiment file")
    elif config.function or config.documents:
        raise DocumentError(f"{place}: `function` and `documents` belong to `with: function`, here it is `with: {config.scorer}`")
