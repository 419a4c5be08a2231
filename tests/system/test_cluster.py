"""A search on a real Ray cluster: two nodes on the loopback interface, one of them killed in the middle."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from evomerge.study.cluster import Cluster
from evomerge.study.executor import Job
from tests.study.workers import Answering
from tests.system.searches import ENVIRONMENT, ROOT, arguments, finished, forked, started, trials, until
from tests.system.test_processes import slow  # noqa: F401 - a fixture

# imported by no test: it reads its environment when it is
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "evomerge[ray]"')

WHERE = """
import ray
_slow = score

def score(weights, config, task, documents):
    \"\"\"As above, and a line that says which node and which process did it.\"\"\"
    with open(os.environ["CALLS"] + ".nodes", "a") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()} {os.getpid()}\\n")
    time.sleep(0.05)
    return _slow(weights, config, task, documents)
"""


@pytest.fixture
def cluster(calls):
    """Two nodes with a CPU each, for one test."""
    helper = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/system/machines.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    lines = (line for line in helper.stdout if line.startswith("{"))
    said = next(lines, None)
    assert said, "the cluster did not start"
    yield SimpleNamespace(pid=helper.pid, calls=calls, **json.loads(said))
    helper.communicate("", timeout=60)


@pytest.fixture
def placed(slow):  # noqa: F811
    scorer = slow / "scorer.py"
    scorer.write_text(scorer.read_text() + WHERE)
    return slow


def worked(cluster):
    """Which nodes have scored so far, and by which processes."""
    path = Path(f"{cluster.calls}.nodes")
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


def both_at_work(cluster):
    """The nodes that have scored, as soon as they are two."""
    deadline = time.monotonic() + 200
    while len(found := {node for node, _ in worked(cluster)}) < 2:
        assert time.monotonic() < deadline, f"only {found} has scored"
        time.sleep(0.05)
    return found


def descendants(pid):
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def listening(pid):
    """Addresses on which a process and all that it started listen."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[f"socket:[{fields[9]}]"] = fields[1].split(":")
    for one in descendants(pid):
        for link in Path(f"/proc/{one}/fd").glob("*"):
            try:
                yield from ([inodes[os.readlink(link)]] if os.readlink(link) in inodes else [])
            except OSError:
                continue


def say(what):
    sys.stdout.write(json.dumps(what) + "\n")


def test_jobs_cross_dead_workers_are_replaced_and_faults_are_results(tmp_path):
    def life(name, *tasks):
        results = []
        for task in tasks:
            results += [(yield Job(None, {task: [1, 2, 3]}))]
        return name, results

    def run():
        executor = Cluster(partial(Answering, tmp_path), "local", 2)
        lives = [life("x", "a", "die-once", "b"), life("y", "sleep", "a"), life("z", "die", "a"), life("w", "raise")]
        for name, results in executor.run(iter(lives)):
            say([name, [result.error or len(result.scores) for result in results]])
        say(["listening", sorted({address for address, _ in listening(os.getpid())})])
        executor.close()

    done = forked(run)

    assert done.returncode == 0, done.stderr
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert found["x"] == [3, 3, 3]
    assert found["y"] == [3, 3]
    assert found["z"] == ["its worker died 2 times (the last by ActorDiedError)", 3]
    assert found["w"] == ["ZeroDivisionError: by nought (workers.py:26)"]
    assert set(found["listening"]) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, as the kernel writes it


def test_a_node_killed_in_the_middle_costs_no_trial_and_a_killed_controller_neither(placed, cluster, tmp_path):
    words = arguments(placed, tmp_path / "study", "--trials", "120", "--ray", cluster.address, workers=2)
    running = started(words)
    until(running, "0000")
    both = both_at_work(cluster)
    doomed = [*cluster.raylets][1]  # the head holds the cluster
    os.kill(cluster.raylets[doomed], signal.SIGKILL)
    until(running, f"{len(trials(tmp_path / 'study')) + 10:04d}")
    os.kill(running.pid, signal.SIGKILL)  # now the controller; its workers end with it
    running.communicate()
    finished_then = trials(tmp_path / "study")
    begun = len(worked(cluster))
    time.sleep(3)
    settled = len(worked(cluster))

    done = finished(words)

    assert done.returncode in (0, 3, 4, 5), done.stderr
    assert both == cluster.raylets.keys()
    assert {node for node, _ in worked(cluster)[-50:]} == both - {doomed}
    assert settled - begun <= 6  # the life that was under way; a worker without its controller takes no more
    assert trials(tmp_path / "study")[: len(finished_then)] == finished_then
    ended = [user["folder"] for *_, user, _ in trials(tmp_path / "study")]
    assert len({name[:4] for name in ended}) == len(ended) == 120
    assert sorted(ended) == sorted(folder.name for folder in (tmp_path / "study/trials").iterdir())
    reasons = [json.loads(path.read_text())["reason"] for path in (tmp_path / "study/trials").glob("*/verdict.json")]
    assert not [reason for reason in reasons if "died" in reason]


def test_a_cluster_on_the_loopback_interface_listens_nowhere_else_and_shows_no_dashboard(cluster):
    found = [(address, int(port, 16)) for address, port in listening(cluster.pid)]

    assert len(found) >= 4
    assert {address for address, _ in found} <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert 8265 not in {port for _, port in found}


def test_a_study_that_the_machines_cannot_see_is_refused_in_one_line(tmp_path):
    def run():
        executor = Cluster(partial(Answering, tmp_path), "local", 1, study=tmp_path / "elsewhere")
        try:
            list(executor.run(iter([(_ for _ in ())])))
        finally:
            executor.close()

    done = forked(run)

    assert done.returncode == 1
    assert "--out must be a folder all machines share" in done.stderr
