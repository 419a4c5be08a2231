"""Task files: read offline and fresh, refused by name where they are wrong, asked only what was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import GuardError, ScoringError, SuiteError
from evomerge.scoring.bound import Bound
from evomerge.scoring.contamination import refuse_contamination
from evomerge.scoring.harness import Harness, score_key
from evomerge.scoring.suite import GuardConfig, Suite
from evomerge.scoring.tasks import document_hash

from .conftest import CHOSEN, WRITTEN, write_task

LETTERS = [{"prompt": f"rank {i} of abc=", "choices": ["a", "b", "c"], "gold": i % 3} for i in range(6)]


class Recorder:
    """An LM of our own with lm-eval's three methods: says what it is told, and remembers what it was asked."""

    def __init__(self, text: str = "b", log: float | None = None) -> None:
        self.asked: list[str] = []
        self.text, self.log = text, log

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.asked += [request.args[0] + request.args[1] for request in requests]
        return [(self.log or (-0.5 if r.args[1].strip() == self.text else -2.0), True) for r in requests]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        return [-12.0 for _ in requests]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.asked += [request.args[0] for request in requests]
        return [self.text for _ in requests]

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)


def task(
    folder: Path, rows: list[dict[str, Any]] = LETTERS, *, name: str = "mine", template: str = CHOSEN, **changes: str
) -> Harness:
    write_task(folder, name, rows, template)
    for old, new in changes.items():
        text = (folder / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(
            "".join(f"{new}\n" if line.startswith(old) else line for line in text.splitlines(True))
        )
    return Harness([name], [str(folder)])


def test_only_the_documents_asked_for_are_asked(tmp_path) -> None:
    lm = Recorder()
    scores = task(tmp_path).score(lm, {"mine": [4, 1]})

    assert sorted(lm.asked) == sorted(f"rank {i} of abc={choice}" for i in (4, 1) for choice in "abc")
    assert scores.values("mine") == {1: 1.0, 4: 1.0}
    assert scores.margins("mine") == {1: 1.5, 4: 1.5}
    assert {row.response for row in scores.rows} == {"b"}
    assert task(tmp_path).score(lm, {"mine": []}).rows == ()


def test_the_catalogue_hashes_contents_without_a_model(tmp_path) -> None:
    hashes = task(tmp_path, [*LETTERS, LETTERS[0]]).catalogue()["mine"]

    assert hashes[0] == hashes[6] == document_hash("mine", LETTERS[0])
    assert len(set(hashes)) == 6


def test_an_edited_data_file_is_read_anew_though_its_time_is_the_same(tmp_path) -> None:
    before = task(tmp_path)
    stamp = (tmp_path / "mine.jsonl").stat()
    edited = [{**LETTERS[0], "prompt": "rank 9 of abc="}, *LETTERS[1:]]
    write_task(tmp_path, "mine", edited, CHOSEN)
    os.utime(tmp_path / "mine.jsonl", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = Harness(["mine"], [str(tmp_path)])

    assert after.documents["mine"][0]["prompt"] == "rank 9 of abc="
    assert after.catalogue() != before.catalogue()
    assert after.fingerprint() != before.fingerprint()


def test_reading_tasks_writes_nothing_into_the_home_and_leaves_the_working_directory(tmp_path) -> None:
    home, tasks = tmp_path / "home", tmp_path / "tasks"
    home.mkdir()
    tasks.mkdir()
    write_task(tasks, "mine", LETTERS, CHOSEN)
    code = (
        "import os, sys; before = os.getcwd(); from evomerge.scoring.harness import Harness;"
        f"Harness(['mine'], [{str(tasks)!r}]); assert os.getcwd() == before;"
        "assert os.environ['HF_HUB_OFFLINE'] == os.environ['HF_DATASETS_OFFLINE'] == '1'"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    assert [path for path in home.rglob("*") if path.is_file()] == []


TRUE = "aggregation: mean, higher_is_better: true}]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task:": "task: yours"}, "no task 'mine'"),
        ({"dataset_kwargs:": "dataset_kwargs: {data_files: {test: lost.jsonl}}"}, "needs the file .*lost.jsonl"),
        ({"doc_to_text:": 'doc_to_text: "{{lost}}"'}, "cannot load it .UndefinedError: 'lost' is undefined"),
        ({"test_split:": "test_split: lost"}, "cannot load it .KeyError"),
        ({"metric_list:": f"metric_list: [{{metric: acc, {TRUE}\nunsafe_code: true"}, "allow_code: true"),
        ({"metric_list:": f"metric_list: [{{metric: code_eval, {TRUE}"}, "allow_code: true"),
    ],
)
def test_a_wrong_task_file_is_refused_by_name(tmp_path, changes, message) -> None:
    with pytest.raises(SuiteError, match=message) as error:
        task(tmp_path, **changes)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_that_nobody_knows_is_refused_with_the_nearest(tmp_path) -> None:
    task(tmp_path, name="letters")

    with pytest.raises(SuiteError, match="no task 'leters'; did you mean 'letters'"):
        Harness(["leters"], [str(tmp_path)])


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has no documents"), ('{"a": 1}\n{"a": ', "line 2: not valid JSON"), ("[1]", "must be a JSON object")],
)
def test_a_wrong_data_file_is_refused_by_name(tmp_path, content, message) -> None:
    task(tmp_path)
    (tmp_path / "mine.jsonl").write_text(content)

    with pytest.raises(SuiteError, match=f"mine.jsonl.*{message}"):
        Harness(["mine"], [str(tmp_path)])


def test_a_document_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(ScoringError, match="mine: no document 6; the task has 6"):
        task(tmp_path).score(Recorder(), {"mine": [6]})
    with pytest.raises(ScoringError, match="yours: not a task of this suite"):
        task(tmp_path).score(Recorder(), {"yours": [0]})


def test_few_shot_examples_of_a_document_depend_on_no_other(tmp_path) -> None:
    write_task(tmp_path, "mine", LETTERS, CHOSEN + "fewshot_split: test\n")
    together, apart = Recorder(), Recorder()
    options = {"num_fewshot": 2}
    Harness(["mine"], [str(tmp_path)], options).score(together, {"mine": [0, 1, 2, 3, 4, 5]})
    other = Harness(["mine"], [str(tmp_path)], options)
    for doc in (5, 3, 0, 1, 2, 4):
        other.score(apart, {"mine": [doc]})

    assert sorted(apart.asked) == sorted(together.asked)
    assert all(text.count("rank") == 3 for text in apart.asked)


def test_a_chat_template_wraps_the_prompt(tmp_path) -> None:
    lm = Recorder()
    write_task(tmp_path, "mine", LETTERS, CHOSEN)
    options = {"apply_chat_template": True, "system_instruction": "Be brief."}
    Harness(["mine"], [str(tmp_path)], options).score(lm, {"mine": [0]})

    assert lm.asked[0] == "<system>Be brief.<user>rank 0 of abc=a"


def test_generation_options_reach_the_requests(tmp_path) -> None:
    write_task(tmp_path, "mine", [{"prompt": "x", "answer": "b"}], WRITTEN)
    harness = Harness(["mine"], [str(tmp_path)], {"gen_kwargs": {"max_gen_toks": 3}})

    assert harness._question(Recorder(), "mine", 0).requests[0].args[1]["max_gen_toks"] == 3
    assert harness.score(Recorder(), {"mine": [0]}).values("mine") == {0: 1.0}
    assert harness.score(Recorder("c"), {"mine": [0]}).rows[0].response == "c"


def test_the_first_metric_counts_and_a_margin_goes_by_its_normalisation(tmp_path) -> None:
    rows = [{"prompt": "x=", "choices": ["bb", "cccccc"], "gold": 1}]
    metrics = "metric_list: [{metric: acc_norm, aggregation: mean, higher_is_better: true}, {metric: acc}]"
    row = task(tmp_path, rows, **{"metric_list:": metrics}).score(Recorder("bb"), {"mine": [0]}).rows[0]

    assert row.value == 0.0
    assert row.margin == pytest.approx(-2.0 / 6 + 0.5 / 2) == pytest.approx(-1 / 12)


def test_a_metric_that_is_better_when_lower_is_negated_in_rows(tmp_path) -> None:
    write_task(
        tmp_path, "mine", [{"prompt": "x", "answer": "b"}], WRITTEN.replace("higher_is_better: true", "higher_is_better: false")
    )
    harness = Harness(["mine"], [str(tmp_path)])

    assert harness.higher_is_better == {"mine": False}
    assert harness.score(Recorder("b"), {"mine": [0]}).values("mine") == {0: -1.0}


def test_a_perplexity_becomes_the_mean_log_likelihood(tmp_path) -> None:
    template = CHOSEN.replace("multiple_choice", "loglikelihood_rolling").replace("doc_to_target: gold", "doc_to_target: prompt")
    template = template.replace("doc_to_choice: choices\n", "").replace(
        "metric: acc, aggregation: mean", "metric: word_perplexity"
    )
    harness = task(tmp_path, [{"prompt": "one two three"}], template=template.replace("true}]", "false}]"))

    assert harness.score(Recorder(), {"mine": [0]}).values("mine") == {0: -4.0}


def test_a_metric_without_a_value_per_document_is_refused(tmp_path) -> None:
    harness = task(tmp_path, **{"metric_list:": "metric_list: [{metric: mcc}, {metric: acc}]"})

    with pytest.raises(SuiteError, match="mine: its first metric, 'mcc', has no value for a single document"):
        harness.score(Recorder(), {"mine": [0]})


def test_nan_is_refused(tmp_path) -> None:
    with pytest.raises(ScoringError, match="mine: the model gives NaN for document 0"):
        task(tmp_path).score(Recorder(log=float("nan")), {"mine": [0]})


def test_filters_and_functions_beside_the_task_file_are_used_and_fingerprinted(tmp_path) -> None:
    filters = "[{{function: regex, regex_pattern: '= ([a-z]+)'}}, {{function: take_first}}]"
    template = WRITTEN + "filter_list: [{{name: last, filter: " + filters + "}}]\n"
    template = template.replace('"{{{{prompt}}}}"', "!function helper.text")
    (tmp_path / "helper.py").write_text("def text(doc):\n    return doc['prompt'] + '?'\n")
    lm = Recorder("so it is = b")
    harness = task(tmp_path, [{"prompt": "x", "answer": "b"}], template=template)
    row = harness.score(lm, {"mine": [0]}).rows[0]

    assert (lm.asked, row.value, row.response, row.margin) == (["x?"], 1.0, "so it is = b", None)
    (tmp_path / "helper.py").write_text("def text(doc):\n    return doc['prompt'] + '!'\n")
    assert Harness(["mine"], [str(tmp_path)]).fingerprint() != harness.fingerprint()


def test_a_fingerprint_sees_the_task_file_the_options_and_the_engine_and_not_the_place(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here, there = task(tmp_path / "a"), task(tmp_path / "b")
    other = task(tmp_path / "b", **{"target_delimiter:": 'target_delimiter: " "'})
    shots = Harness(["mine"], [str(tmp_path / "a")], {"num_fewshot": 1})

    assert here.fingerprint("hf") == there.fingerprint("hf")
    assert len({harness.fingerprint("hf") for harness in (here, other, shots)} | {here.fingerprint("vllm")}) == 4
    assert score_key("k", here.fingerprint("hf")) != score_key("l", here.fingerprint("hf"))


def test_data_files_may_be_patterns_lists_and_json_arrays(tmp_path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(LETTERS[0]) + "\n")
    (tmp_path / "two.json").write_text(json.dumps(LETTERS[1:3]))
    harness = task(tmp_path, **{"dataset_kwargs:": "dataset_kwargs: {data_files: {test: ['o*.jsonl', two.json]}}"})

    assert [document["gold"] for document in harness.documents["mine"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("metrics", "bound", "message"),
    [
        ("exact_match, aggregation: mean, higher_is_better: true", {"floor": 0.5}, None),
        ("exact_match, aggregation: mean, higher_is_better: false", {"ceiling": 0.5}, None),
        (
            "exact_match, aggregation: mean, higher_is_better: true",
            {"ceiling": 0.5},
            "more is better of exact_match.*write `floor`",
        ),
        (
            "exact_match, aggregation: mean, higher_is_better: false",
            {"floor": 0.5},
            "less is better of exact_match.*write `ceiling`",
        ),
        (
            "exact_match, aggregation: mean, higher_is_better: null",
            {"loss": 0.02},
            "does not say whether more of exact_match is better",
        ),
    ],
)
def test_a_guard_goes_the_way_of_its_metric_and_needs_one(tmp_path, metrics, bound, message) -> None:
    template = WRITTEN.replace("exact_match, aggregation: mean, higher_is_better: true", metrics)
    write_task(tmp_path, "mine", [{"prompt": "x", "answer": "b"}], template)
    harness = Harness(["mine"], [str(tmp_path)])
    guard = GuardConfig({"mine": Bound(**bound)})

    if message is None:
        harness.learn_guards(guard)
    else:
        with pytest.raises(GuardError, match=message):
            harness.learn_guards(guard)


def test_two_tasks_over_the_same_documents_are_known_by_their_contents(tmp_path) -> None:
    for name in ("mine", "twin"):
        write_task(tmp_path, name, [{"prompt": "x", "answer": "b"}], WRITTEN)
    harness = Harness(["mine", "twin"], [str(tmp_path)])

    assert harness.contents()["mine"] == harness.contents()["twin"]
    assert harness.catalogue()["mine"] != harness.catalogue()["twin"]
    with pytest.raises(GuardError, match=r"guard.tasks.twin: 1 of its 1 documents are in suite.tasks.mine too"):
        refuse_contamination(Suite({"mine": 1.0}), GuardConfig({"twin": 0.1}), harness.contents())
