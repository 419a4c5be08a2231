"""lm-eval tasks on any lm-eval LM: every prompt is built once, and only the documents asked for go to the model.

`evaluator.evaluate` builds prompts and renders templates anew at every call, draws few-shot examples by the order of the
documents, and puts samples into file order without saying so. Here a document's prompt is a function of the document alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.errors import GuardError, ScoringError, SuiteError
from evomerge.scoring.bound import Bound
from evomerge.scoring.contexts import contexts_of
from evomerge.scoring.scores import Row, Scores
from evomerge.scoring.stopwatch import Stopwatch
from evomerge.scoring.suite import GuardConfig
from evomerge.scoring.tasks import content_hash, document_hash, file_fingerprint, is_code, load_tasks

LOG_LIKELIHOODS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")  # per document: the log-likelihood itself
LENGTHS: dict[str, Callable[[str], int]] = {"acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}


def score_key(candidate: str, suite: str) -> str:
    """What a score depends on: the candidate's key, and `suite_fingerprint` of the scorer."""
    return hashlib.sha256(f"{candidate}:{suite}".encode()).hexdigest()


@dataclass
class Question:
    """One document with its requests, built once and asked of every candidate."""

    task: str
    doc: int
    document: Mapping[str, Any]
    hash: str
    requests: list[Any]  # lm-eval Instances
    draft: str | None  # of a generated answer: what a greedy model writes if and only if it is right


@dataclass
class Harness:
    """The tasks of a suite, ready to be asked."""

    names: Sequence[str]
    include: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    allow_code: bool = False
    clock: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self.tasks = load_tasks(self.names, self.include, options=self.options, allow_code=self.allow_code)
        self.documents: dict[str, list[Any]] = {name: list(task.eval_docs) for name, task in self.tasks.items()}
        self._hashes = {name: [document_hash(name, doc) for doc in docs] for name, docs in self.documents.items()}
        self._questions: dict[tuple[str, int], Question] = {}
        self._contexts: dict[str, list[str | None]] = {}
        self._files = {name: file_fingerprint(task) for name, task in self.tasks.items()}  # as they are now: they may be edited
        # the main metric of each task is the first of its list
        self.metrics: dict[str, str] = {name: next(iter(task.higher_is_better()), "") for name, task in self.tasks.items()}
        for task in self.tasks.values():
            _remember_answers(task)

    def catalogue(self) -> dict[str, list[str]]:
        return {name: list(hashes) for name, hashes in self._hashes.items()}

    def contents(self) -> dict[str, list[str]]:
        """The hash of every document, whatever task asks it: where two tasks share documents."""
        return {name: [content_hash(doc) for doc in docs] for name, docs in self.documents.items()}

    def learn_guards(self, guard: GuardConfig) -> None:
        """What documents of the guard tasks share. Raises GuardError where a bound does not go with its metric (no direction, the
        other one, no unit of its own), or where no document has the field that it names."""
        for name, bound in guard.tasks.items():
            _refuse_bound(name, self.metrics[name], self.tasks[name].higher_is_better(), Bound.of(bound))
        self._contexts = contexts_of(guard, self.documents)

    def fingerprint(self, *engine: str) -> str:
        """SHA-256 of task files, data and options, and of what `engine` says of the scorer."""
        tasks = {name: [self._files[name], self._hashes[name], _examples(name, task)] for name, task in self.tasks.items()}
        text = json.dumps([tasks, dict(self.options), list(engine)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """As the task says of its metric. In rows more is always better: other metrics are negated there."""
        return {name: bool(next(iter(task.higher_is_better().values()), True)) for name, task in self.tasks.items()}

    def score(self, lm: Any, documents: Mapping[str, Sequence[int]]) -> Scores:
        """One row for each of these documents."""
        questions = self.questions(lm, documents)
        with self.clock("engine"):
            margins = _ask(lm, questions)
        rows: list[Row] = []
        for task in documents:
            asked = [question for question in questions if question.task == task]
            if asked:
                rows += self._rows(task, asked, margins)
        return Scores.of(rows)

    def questions(self, lm: Any, documents: Mapping[str, Sequence[int]]) -> list[Question]:
        return [self._question(lm, task, doc) for task, docs in documents.items() for doc in docs]

    def sample(self, lm: Any, count: int) -> list[str]:
        """The prompts of some documents of every task."""
        each = max(count // len(self.tasks), 2)
        spread = {name: range(0, len(docs), max(len(docs) // each, 1)) for name, docs in self.documents.items()}
        questions = [self._question(lm, name, doc) for name, docs in spread.items() for doc in docs[:each]]
        return [str(question.requests[0].args[0]) for question in questions]

    def _question(self, lm: Any, name: str, doc: int) -> Question:
        if (name, doc) not in self._questions:
            self._questions[name, doc] = self._build(lm, name, doc)
        return self._questions[name, doc]

    def _build(self, lm: Any, name: str, doc: int) -> Question:
        if name not in self.tasks:
            raise ScoringError(f"{name}: not a task of this suite (its tasks: {', '.join(self.tasks)})")
        if not 0 <= doc < len(self.documents[name]):
            raise ScoringError(f"{name}: no document {doc}; the task has {len(self.documents[name])}")
        task, document, content = self.tasks[name], self.documents[name][doc], self._hashes[name][doc]
        chat = bool(self.options.get("apply_chat_template"))
        template = {"apply_chat_template": chat, "chat_template": _chat_template(lm, self.options) if chat else None}
        task.set_fewshot_seed(seed=int(content[:8], 16))  # the examples of a document depend on no other document
        context = task.fewshot_context(
            document,
            num_fewshot=task.config.num_fewshot,
            system_instruction=self.options.get("system_instruction"),
            fewshot_as_multiturn=bool(self.options.get("fewshot_as_multiturn")),
            gen_prefix=task.doc_to_prefix(document),
            **template,
        )
        made = task.construct_requests(doc=document, ctx=context, metadata=(name, doc, task.config.repeats), **template)
        return Question(name, doc, document, content, made if isinstance(made, list) else [made], _draft(task, document))

    def _rows(self, name: str, questions: Sequence[Question], margins: Mapping[int, float]) -> list[Row]:
        task = self.tasks[name]
        for filters in task._filters[:1]:  # the first filter is the task's own reading of an answer
            filters.apply([request for question in questions for request in question.requests])
        results = [[request.filtered_resps[task._filters[0].name] for request in q.requests] for q in questions]
        if is_code(task):
            from evomerge.scoring.code import run_in_child

            found = run_in_child(self, name, {q.doc: result for q, result in zip(questions, results, strict=True)})
        else:
            found = {q.doc: task.process_results(q.document, result) for q, result in zip(questions, results, strict=True)}
        contexts = self._contexts.get(name)
        return [
            Row(
                name,
                q.doc,
                q.hash,
                value,
                self._margin(q, value, result, margins),
                _response(task, q, result),
                contexts[q.doc] if contexts else None,
            )
            for q, result in zip(questions, results, strict=True)
            for metrics in [found[q.doc]]
            for value in [0.0 if metrics is None else _value(name, task, metrics)]
        ]

    def _margin(self, question: Question, value: float, results: list[Any], margins: Mapping[int, float]) -> float | None:
        task = self.tasks[question.task]
        if task.OUTPUT_TYPE == "multiple_choice":
            return _choice_margin(task, self.metrics[question.task], question, results)
        margin = margins.get(id(question.requests[0]))
        return margin if margin is not None and (margin > 0) == (value == 1) else None


def _refuse_bound(name: str, metric: str, directions: Mapping[str, bool | None], bound: Bound) -> None:
    place, better = f"guard.tasks.{name}", directions.get(metric)
    if better is None:
        raise GuardError(
            f"{place}: lm-eval does not say whether more of {metric or 'its metric'} is better; "
            "write higher_is_better in the task file"
        )
    wrong = "ceiling" if better else "floor"
    if getattr(bound, wrong) is not None:
        more, right = ("more", "floor") if better else ("less", "ceiling")
        raise GuardError(f"{place}: {more} is better of {metric}, and a {wrong} bounds the good side; write `{right}`")
    if metric in LOG_LIKELIHOODS and bound.ceiling is not None:
        raise GuardError(
            f"{place}: {metric} is scored by the log-likelihood of each document; bound its loss instead of the ceiling"
        )


def _ask(lm: Any, questions: Sequence[Question]) -> dict[int, float]:
    """Fills the requests' responses; gives the margin of each generated answer where the LM tells it."""
    by_type: dict[str, list[Any]] = {}
    drafts: dict[int, str | None] = {}
    for question in questions:
        for request in question.requests:
            request.resps, request.filtered_resps = [], {}
            by_type.setdefault(request.request_type, []).extend([request] * (request.repeats or 1))
            drafts[id(request)] = question.draft
    margins: dict[int, float] = {}
    for kind, requests in by_type.items():
        if kind == "generate_until" and hasattr(lm, "generate_with_drafts"):
            answers = lm.generate_with_drafts(requests, [drafts[id(request)] for request in requests])
            responses = [answer.text for answer in answers]
            margins |= {id(r): a.margin for r, a in zip(requests, answers, strict=True) if a.margin is not None}
        else:
            responses = getattr(lm, kind)(requests, disable_tqdm=True)
        for request, response in zip(requests, responses, strict=True):
            request.resps.append(_checked(request, response))
    return margins


def _checked(request: Any, response: Any) -> Any:
    number = response[0] if isinstance(response, tuple) else response
    if isinstance(number, float) and math.isnan(number):  # argmax would call choice 0 the answer
        raise ScoringError(f"{request.task_name}: the model gives NaN for document {request.doc_id}; its weights are broken")
    return response


def _value(name: str, task: Any, metrics: Mapping[str, Any]) -> float:
    """The main metric of one document, turned so that more is better."""
    directions = task.higher_is_better()
    metric = next((key for key in directions if key in metrics), next(iter(metrics), ""))
    value: Any = metrics.get(metric)
    if metric in LOG_LIKELIHOODS:
        total, count = value if isinstance(value, tuple) else (value, 1)
        return float(total) / float(max(count, 1))
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SuiteError(
            f"{name}: its first metric, {metric!r}, has no value for a single document; put acc or exact_match first"
        ) from None
    if directions.get(metric, True) is None:
        raise SuiteError(
            f"{name}: lm-eval does not say whether more of {metric} is better; write higher_is_better in the task file"
        )
    return number if directions.get(metric, True) else -number


def _choice_margin(task: Any, metric: str, question: Question, results: list[Any]) -> float | None:
    """log p(gold) - max log p(other), normalised as the metric is: above 0 where the answer is right."""
    choices = task.doc_to_choice(question.document)
    found = [result[0] for result in results]
    logs = [log / LENGTHS[metric](choice) for log, choice in zip(found, choices, strict=False)] if metric in LENGTHS else found
    if metric == "acc_mutual_info":
        logs = [log - alone for log, alone in zip(found, found[len(choices) :], strict=False)]
    gold = task.doc_to_text(question.document) if task.multiple_input else task.doc_to_target(question.document)
    indices = [
        choices.index(g) if isinstance(g, str) and g in choices else g for g in (gold if isinstance(gold, list) else [gold])
    ]
    right = [log for i, log in enumerate(logs[: len(choices)]) if i in indices]
    wrong = [log for i, log in enumerate(logs[: len(choices)]) if i not in indices]
    margin = max(right) - max(wrong) if right and wrong else math.nan
    return margin if math.isfinite(margin) else None


def _response(task: Any, question: Question, results: list[Any]) -> str | None:
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(question.document)
        return str(choices[max(range(len(choices)), key=lambda i: results[i][0])])
    answer = question.requests[0].resps[0]
    return answer if isinstance(answer, str) else None


def _draft(task: Any, document: Any) -> str | None:
    """What a greedy model writes if and only if it is right: only where the answer is compared as it stands."""
    if task.OUTPUT_TYPE != "generate_until" or task.config.filter_list or callable(task.config.process_results):
        return None
    if next(iter(task.higher_is_better()), None) != "exact_match":
        return None
    target, until = task.doc_to_target(document), (task.config.generation_kwargs or {}).get("until") or ""
    return f"{target}{until if isinstance(until, str) else until[0]}" if isinstance(target, str) else None


def _examples(name: str, task: Any) -> list[str]:
    """The hashes of the documents that few-shot examples are drawn from."""
    return [document_hash(name, doc) for doc in task.sampler.df] if task.config.num_fewshot else []


def _chat_template(lm: Any, options: Mapping[str, Any]) -> Callable[..., str]:
    template = options["apply_chat_template"]
    if isinstance(template, str):
        lm.chat_template(template)  # raises where the tokenizer has none of this name
    apply: Callable[..., str] = lm.apply_chat_template
    return apply


def _remember_answers(task: Any) -> None:
    """lm-eval compiles a template at every look at a document, ten times the cost of asking a small model."""
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        if hasattr(task, name):
            setattr(task, name, _remembered(getattr(task, name)))


def _remembered(read: Callable[..., Any]) -> Callable[..., Any]:
    kept: dict[int, tuple[Any, Any]] = {}

    def look(doc: Any, *override: Any) -> Any:
        if any(o is not None for o in override):
            return read(doc, *override)
        if id(doc) not in kept:
            kept[id(doc)] = (doc, read(doc))  # the document is kept too: an id lives only as long as its object
        return kept[id(doc)][1]

    return look
