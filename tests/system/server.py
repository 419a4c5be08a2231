"""A PostgreSQL server of one test: on the loopback interface, in a folder of its own, never as root."""

import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path


def programs():
    """The folder of `initdb` and `postgres`; None where there is none."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) or [shutil.which("initdb")]
    return Path(found[-1]).parent if found[-1] else None


class Server:
    """Began empty; `kill` as a power cut would, `start` again."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(dir="/tmp")  # pytest's own are closed to other users
        self.user = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            user = pwd.getpwnam("nobody")
            self.user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg2://evomerge@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "-D", "data", "-U", "evomerge", "-A", "trust", "--no-sync").check_returncode()
        self.start()

    def _run(self, program, *arguments, start=subprocess.run):
        return start(
            [programs() / program, *arguments],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=open(f"{self.folder}/log", "ab"),
            env={"LC_ALL": "C"},
            process_group=0,
            **self.user,
        )

    def start(self):
        settings = ("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=")
        self.process = self._run("postgres", "-D", "data", "-p", str(self.port), *settings, start=subprocess.Popen)
        deadline = time.monotonic() + 120
        while self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port)).returncode:
            assert time.monotonic() < deadline, Path(self.folder, "log").read_text()
            time.sleep(0.2)

    def kill(self):
        for process in [self.process.pid, *self._children()]:
            with contextlib.suppress(ProcessLookupError):  # it went with the first
                os.kill(process, signal.SIGKILL)
        self.process.wait()

    def _children(self):
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return map(int, text.split())

    def end(self):
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
