"""Code that a model wrote runs in a child: it is scored, and it reaches neither the network, nor programs, nor our memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from evomerge.errors import ScoringError
from evomerge.scoring import code
from evomerge.scoring.harness import Harness

from .conftest import write_task
from .test_harness import Recorder

TEMPLATE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: check
process_results: !function run.process
generation_kwargs: {{until: ["END"]}}
metric_list: [{{metric: passed, aggregation: mean, higher_is_better: true}}]
unsafe_code: true
metadata: {{version: 1}}
"""
RUN = """
import os

def process(doc, results):
    space = {}
    try:
        exec(results[0], space)
        return {"passed": float(eval(doc["check"], space))}
    except Exception:
        return {"passed": 0.0}
"""


class Writer(Recorder):
    """Answers each document with the program written in its prompt."""

    def generate_until(self, requests, disable_tqdm=False):
        return [request.args[0] for request in requests]


PROGRAMS = {
    "right": ("def add(a, b): return a + b", "add(2, 3) == 5"),
    "wrong": ("def add(a, b): return a * b", "add(2, 3) == 5"),
    "apart": ("import os; mine = os.getpid()", "mine != int(os.environ.get('PARENT', 0)) and os.getppid() != 1"),
    "connects": ("import socket; socket.create_connection(('127.0.0.1', {port}), 2)", "True"),
    "resolves": ("import socket; socket.getaddrinfo('example.org', 80)", "True"),
    "starts": ("import subprocess; subprocess.run(['true'])", "True"),
    "system": ("import os; os.system('true')", "True"),
    "writes much": ("open('big', 'wb').write(b'0' * (1 << 27))", "True"),
    "takes much": ("x = bytearray(1 << 36)", "True"),
    "ends all": ("import os; os._exit(0)", "True"),
    "has variables": ("import os; secret = os.environ.get('EVOMERGE_TEST_SECRET')", "secret == 'known'"),
}


def test_code_is_scored_in_a_child_that_reaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("EVOMERGE_TEST_SECRET", "known")
    (tmp_path / "run.py").write_text(RUN)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        rows = [{"prompt": program.replace("{port}", str(port)), "check": check} for program, check in PROGRAMS.values()]
        write_task(tmp_path, "programs", rows, TEMPLATE)
        harness = Harness(["programs"], [str(tmp_path)], allow_code=True)
        monkeypatch.setattr(harness.tasks["programs"], "process_results", None)  # never called in this process
        values = harness.score(Writer(), {"programs": range(len(rows))}).values("programs")

    passed = {name: values[i] for i, name in enumerate(PROGRAMS)}
    assert passed == {**dict.fromkeys(PROGRAMS, 0.0), "right": 1.0, "apart": 1.0}


def test_a_child_that_cannot_even_start_or_takes_too_long_is_an_error_of_this_task(tmp_path, monkeypatch) -> None:
    (tmp_path / "run.py").write_text(RUN)
    write_task(tmp_path, "programs", [{"prompt": "x = 1", "check": "True"}], TEMPLATE)
    harness = Harness(["programs"], [str(tmp_path)], allow_code=True)
    (tmp_path / "run.py").write_text("raise ValueError('no longer there')")

    with pytest.raises(ScoringError, match=r"programs: the child that runs the model's code broke: .*no longer there"):
        harness.score(Writer(), {"programs": [0]})
    monkeypatch.setattr(code, "START", 0.01)
    monkeypatch.setattr(code, "SECONDS", 0.01)
    with pytest.raises(ScoringError, match="programs: running the model's code took longer than"):
        harness.score(Writer(), {"programs": [0]})


def test_a_program_that_never_ends_costs_its_own_document_only(monkeypatch) -> None:
    monkeypatch.setattr(code, "SECONDS", 1)
    reading, writing = os.pipe()

    assert code._apart(lambda: time.sleep(60), writing) is None
    assert code._apart(lambda: os._exit(0), writing) is None
    assert code._apart(lambda: {"passed": 1.0}, writing) == {"passed": 1.0}
    os.close(reading)
    os.close(writing)
