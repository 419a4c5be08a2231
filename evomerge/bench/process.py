"""What a process took: CPU seconds of user and system, and the most memory that was no file's."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import EvomergeError

LOOK = 0.01  # seconds between looks at a process's memory: the kernel keeps no high-water mark of what is anonymous
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Cost:
    """CPU seconds, and the most anonymous memory (RssAnon) in bytes; pages of mapped files are not counted."""

    seconds: float
    anonymous: int


def run(command: Sequence[str]) -> Cost:
    """Run a command to its end with one thread. Raises EvomergeError with its last line where it fails."""
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, env={**os.environ, **QUIET}, stdin=subprocess.DEVNULL, stdout=told, stderr=told)
        anonymous = 0
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            anonymous = max(anonymous, anonymous_memory(process.pid))
            time.sleep(LOOK)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        if process.returncode:
            told.seek(0)
            last = (told.read().strip().splitlines() or ["it said nothing"])[-1]
            raise EvomergeError(f"bench: {' '.join(command[:4])} … ended with {process.returncode}: {last}")
    return Cost(ended[2].ru_utime + ended[2].ru_stime, anonymous)


def anonymous_memory(pid: int) -> int:
    """Bytes that a process holds now which are no file's; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
