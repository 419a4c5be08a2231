"""Tasks that run what the model wrote, each document in a child process with limits and without a network.

What holds: a child may use so much processor time, memory, file size and wall time, lives in an empty directory of its own,
sees no variable of the environment beyond a short list, and is killed with all that it started. Where the kernel allows user
namespaces it has no network device at all. Everywhere, Python's own sockets and starting of programs raise an error.
What does not hold: it runs as the same user and can read that user's files, code that sets out to can report a success that it
never had, and machine code (ctypes) gets around the Python-level refusals where namespaces are not allowed. For models that
nobody knows, use a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import ScoringError

if TYPE_CHECKING:
    from evomerge.scoring.harness import Harness

SECONDS = 30  # of processor time, and of wall time, for each document
START = 120  # seconds for the child to import lm-eval
MEMORY = 16 << 30  # address space: torch alone maps several gigabytes
FILE = 64 << 20
FILES = 256
PASSED = ("PATH", "HOME", "LANG", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_NO_NEW_PRIVS = 38
REFUSED = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg", "socket.gethostbyname")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")


def run_in_child(harness: Harness, task: str, answers: Mapping[int, list[Any]]) -> dict[int, dict[str, Any] | None]:
    """The metrics of each document of a code task; None where its code went on too long or broke its process."""
    order = {
        "task": task,
        "include": [os.path.abspath(folder) if not folder.startswith("zoo:") else folder for folder in harness.include],
        "options": dict(harness.options),
        "answers": {str(doc): results for doc, results in answers.items()},
    }
    with tempfile.TemporaryDirectory(prefix="evomerge-code-") as folder:
        report = Path(folder) / "report.json"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "evomerge.scoring.code", str(report)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            cwd=folder, env=_environment(), start_new_session=True,
        )  # fmt: skip
        try:
            _, errors = process.communicate(json.dumps(order).encode(), timeout=START + SECONDS * len(answers))
        except subprocess.TimeoutExpired:
            raise ScoringError(
                f"{task}: running the model's code took longer than {SECONDS} s a document; it was stopped"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not report.exists() or not report.stat().st_size:
            last = errors.decode(errors="replace").strip().splitlines()[-1:] or [f"it ended with {process.returncode}"]
            raise ScoringError(f"{task}: the child that runs the model's code broke: {last[0]}")
        found: dict[str, dict[str, Any] | None] = json.loads(report.read_text())
    return {int(doc): metrics for doc, metrics in found.items()}


def _environment() -> dict[str, str]:
    kept = {key: os.environ[key] for key in PASSED if key in os.environ}
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    quiet = {"HF_ALLOW_CODE_EVAL": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    return kept | paths | quiet | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> None:
    """The child: the task is loaded first, then the doors are closed, and only then anything the model wrote is touched."""
    from evomerge.scoring.tasks import load_tasks

    order = json.load(sys.stdin)
    task = load_tasks([order["task"]], order["include"], options=order["options"], allow_code=True)[order["task"]]
    documents = {doc: task.eval_docs[int(doc)] for doc in order["answers"]}
    report = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    close_doors()
    found = {
        doc: _apart(functools.partial(task.process_results, documents[doc], results), report)
        for doc, results in order["answers"].items()
    }
    os.write(report, json.dumps(found).encode())


def _apart(work: Callable[[], Any], report: int) -> Any:
    """What `work` gives in a process of its own; None if it does not end in time, or ends everything."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.close(report)
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            os.write(writing, json.dumps(work(), default=float).encode())
        os._exit(0)
    os.close(writing)
    text, deadline = b"", time.monotonic() + SECONDS
    while select.select([reading], [], [], max(deadline - time.monotonic(), 0))[0] and (part := os.read(reading, 1 << 16)):
        text += part
    os.close(reading)
    for group in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            group(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        return json.loads(text)
    except ValueError:
        return None


def close_doors() -> None:
    """From here on: limits, no new rights, no network, no programs."""
    cut_network()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    limits = {
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_FSIZE: FILE,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        _, most = resource.getrlimit(limit)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (value, value))
    sys.addaudithook(_refuse)  # cannot be taken away again


def cut_network() -> bool:
    """Into a network namespace of its own; False where the kernel does not let us."""
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    return unshare is not None and unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0


def _refuse(event: str, _: Any) -> None:
    if event in REFUSED:
        raise PermissionError("no network in the code of a model")
    if event in PROGRAMS:
        raise PermissionError("no programs from the code of a model")


if __name__ == "__main__":
    main()
