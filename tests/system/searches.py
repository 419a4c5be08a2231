"""A search as its user's machine knows it: a process with an exit code, and a folder that it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path

import matplotlib.backends.backend_svg
import matplotlib.figure  # noqa: F401 - a fork finds all that is heavy imported already
import optuna

import evomerge.report.write
import evomerge.study.samplers
import evomerge.study.search  # noqa: F401
from evomerge import cli

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
TIMED = ("clock.json", "lock", "report.html", "report.md", "report.json")  # hold seconds, or a process
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")


def arguments(folder, out, *more, space="space.yaml", workers=1):
    """`search` as it is typed, with --resume from the first time on."""
    return ["search", f"{folder / space}", "--out", f"{out}", "--resume", "--workers", f"{workers}", "--log", "json", *more]


def started(words):
    """The command as a process and a process group of its own; its events can be read from `stderr`."""
    command = [sys.executable, "-m", "evomerge.cli", *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        process_group=0,
        # a test run in the background ignores it, and passes that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(words):
    """The command run to its end."""
    running = started(words)
    shown, said = running.communicate(timeout=300)
    return subprocess.CompletedProcess(words, running.returncode, shown, said)


def until(running, name="", text=""):
    """Wait for a phase or a scored candidate whose name begins so, or for a note with the text; the lines until then."""
    said = []
    for line in running.stderr:
        said.append(line)
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("name", "").startswith(name) and text in event.get("text", ""):
            return said
    raise AssertionError(f"ended before {name}{text}: {said[-3:]}")


def forked(act, arm=lambda: None):
    """A command's words, or a function, in a fork of this process, which spares it seconds of imports; `arm` runs there first."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            _become(act if callable(act) else partial(_command, act), arm, out.fileno(), err.fileno())
        _, status = os.waitpid(child, 0)
        shown, said = (os.pread(file.fileno(), 10**7, 0).decode() for file in (out, err))
    return subprocess.CompletedProcess(act, os.waitstatus_to_exitcode(status), shown, said)


def _command(words):
    sys.argv = ["evomerge", *words]
    try:
        cli.main()
    except SystemExit as end:
        return end.code


def _become(act, arm, out, err):
    """The rest of a fork's life: what `act` returns is its exit code."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        arm()
        code = act() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def steps_in(folder, on_step):
    """Call `on_step` with a name before each change that this process makes to files in the folder, or opens one for."""

    def hook(event, details):
        path = str(details[0]) if details and isinstance(details[0], str | Path) else None
        if path is None or (os.path.isabs(path) and not f"{path}/".startswith(f"{folder}/")):
            return  # rmtree works with names relative to an open folder
        if event in CHANGES or (event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR)):
            on_step(f"{event} {kind(path.removeprefix(str(folder)).lstrip('/'))}")

    sys.addaudithook(hook)


def dies_at(study, step, count):
    """In the process where it is called: die before the step of this name comes for the `count`th time."""
    left = [count]

    def on_step(name):
        left[0] -= name == step
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: steps_in(study, on_step)


def dies_after(study, count):
    """In the process where it is called: die before the first folder that is made once the journal has `count` trials."""

    def on_step(name):
        if name.startswith("os.mkdir") and len(trials(study)) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: steps_in(study, on_step)


def kind(path):
    """A path without what differs from trial to trial and from run to run."""
    path = re.sub(r"^(baseline|select|sealed|trials)/(?!winner)[^/]+?(?=$|/|\.draft|\.jsonl)", r"\1/X", path)
    return re.sub(r"(\.jsonl).+(\.part)$|(\.lock).+$", r"\1\2\3", path)


def trials(study):
    """Every line of the journal: number, parameters, value, state, and what the sampler and we noted."""
    path = study / "journal.log"
    if not path.exists() or not path.stat().st_size:
        return []
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    found = storage.get_all_trials(storage.get_all_studies()[0]._study_id) if storage.get_all_studies() else []
    return [(t.number, t.params, t.values, t.state, t.user_attrs, t.system_attrs) for t in found]


def remains(study):
    """All that a study left on disk, apart from times: file by file, trial by trial."""
    files = {str(path.relative_to(study)): path for path in sorted(study.rglob("*")) if path.is_file()}
    return {name: _content(path) for name, path in files.items() if name not in TIMED}


def _content(path):
    if path.name == "journal.log":
        return trials(path.parent)
    if path.name == "verdict.json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
    return path.read_bytes()
