"""Runs by itself with `make test-system`: whole searches, killed, starved of room and looked at; minutes."""

import os
import random
from types import SimpleNamespace

import pytest

from tests.laboratory import build
from tests.system.searches import arguments, forked, steps_in

COUNTED = '''
import os
import zlib
_score = score

def score(weights, config, task, documents):
    """As above, and a line in a file that says what was scored."""
    seen = zlib.crc32(b"".join(weights[name].contiguous().numpy().tobytes() for name in sorted(weights)))
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"{seen:08x} {task} {documents[0]} {len(documents)}\\n")
    return _score(weights, config, task, documents)
'''


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory):
    """The folder of a small experiment whose scorer counts what it is asked; see tests/laboratory.py."""
    folder = build(tmp_path_factory.mktemp("laboratory"))
    scorer = folder / "scorer.py"
    scorer.write_text(scorer.read_text() + COUNTED)
    return folder


@pytest.fixture(autouse=True)
def calls(tmp_path, monkeypatch):
    """The file in which the scorer counts, one line a call."""
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.log"))
    return tmp_path / "calls.log"


@pytest.fixture(scope="session")
def whole(laboratory):
    """A search that nothing happened to: its folder, what it scored in order, every change it made on disk in order."""
    study, calls, steps = laboratory / "whole" / "study", laboratory / "whole-calls.log", laboratory / "steps.log"

    def watched():
        os.environ["CALLS"] = str(calls)
        log = os.open(steps, os.O_WRONLY | os.O_CREAT)
        steps_in(study, lambda step: os.write(log, f"{step}\n".encode()))

    done = forked(arguments(laboratory, study), watched)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(study=study, calls=calls.read_text().splitlines(), steps=steps.read_text().splitlines())


@pytest.fixture
def chance(request):
    """Random moments, the same in every run of a test."""
    return random.Random(request.node.name)
