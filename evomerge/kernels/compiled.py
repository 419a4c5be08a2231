"""The C++ side, built by the user's compiler at its first use and kept: nothing is compiled twice for one machine.

What is kept is named by a hash of the source, the flags, the compiler and the processor, so that a home directory may be
shared by different machines. It is written beside its place and renamed: processes that start at once see all of it or nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("native.cpp")
COMPILERS = ("c++", "g++", "clang++")
# No fast-math and no contraction: a multiplication and an addition round twice, as they do in torch
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
TUNED = ("-march=native", "-mcpu=native", "")  # the first that the compiler takes
PATIENCE = 300  # seconds


class CannotCompile(Exception):
    """Why there are none; said once, then plain torch does the work."""


@cache
def functions() -> ctypes.CDLL | None:
    """The compiled functions, or None where they cannot be had; a hint says why, once a process."""
    if os.environ.get("EVOMERGE_NATIVE") == "0":
        return None
    try:
        return ctypes.CDLL(str(built()))
    except (CannotCompile, OSError, subprocess.SubprocessError) as reason:
        logging.getLogger("evomerge").warning(
            "merging in plain torch, some ten times slower: %s; install a C++ compiler or name one in CXX, "
            "or set EVOMERGE_NATIVE=0 to be told no more", str(reason).strip() or type(reason).__name__
        )  # fmt: skip
        return None


def built() -> Path:
    """The path of the compiled file, after building it where it is not there yet."""
    compiler = find_compiler()
    folder = cache_folder()
    path = folder / f"native-{fingerprint(compiler)}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one compiles, the others wait for it
        if not path.exists():
            build(compiler, path)
    return path


def find_compiler() -> list[str]:
    """The compiler's command: CXX, or the first one on the path."""
    if chosen := os.environ.get("CXX"):
        return shlex.split(chosen)
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise CannotCompile(f"none of {', '.join(COMPILERS)} is on the path")


def cache_folder() -> Path:
    """Where libraries are kept; a folder of this process alone where the user's own cannot be written."""
    home = os.environ.get("EVOMERGE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "evomerge"
    folder = Path(home) / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except OSError:
        return Path(_private().name)


@cache
def _private() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="evomerge-")


def fingerprint(compiler: list[str]) -> str:
    """Of everything that the compiled file depends on."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=PATIENCE, check=False).stdout
    parts = [SOURCE.read_bytes(), repr((FLAGS, TUNED, compiler)).encode(), version, processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def processor() -> str:
    """The processor and what it can do: code for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), *sorted(told)])


def build(compiler: list[str], path: Path) -> None:
    """Compile into a file beside `path` and rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        _compile(compiler, temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _compile(compiler: list[str], out: str) -> None:
    for tuned in TUNED:
        command = [*compiler, *FLAGS, *filter(None, [tuned]), str(SOURCE), "-o", out]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode == 0:
            return
    said = next(iter(done.stderr.strip().splitlines()), f"it ended with {done.returncode}")
    raise CannotCompile(f"{shlex.join(compiler)} cannot compile {SOURCE.name}: {said}")
