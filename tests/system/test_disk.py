"""A disk that is full: the search says so in one line and leaves nothing half-written; with room again, it goes on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.searches import arguments, forked, remains

SIZE = 8_000_000  # bytes: a whole study and the room that a model asks for before it is written


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, mounted where only one process sees it; others reach it by way of /proc."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = f"mount -t tmpfs -o size={SIZE} none {place} && echo mounted && exec sleep 600"
    command = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []), "sh", "-c", mounting]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = holder.stdout.readline().strip()
    if said != "mounted":
        pytest.skip(f"no small disk can be mounted here: {said}")
    yield Path(f"/proc/{holder.pid}/root{place}")
    holder.kill()
    holder.communicate()


def fill(disk, left):
    """A file that leaves so many bytes."""
    with open(disk / "ballast", "wb") as ballast:
        ballast.truncate(0)
        os.posix_fallocate(ballast.fileno(), 0, max(shutil.disk_usage(disk).free - left, 1))


def test_a_search_that_runs_out_of_room_anywhere_says_so_and_goes_on_when_there_is_some(laboratory, whole, disk, chance):
    expected, study, stopped = remains(whole.study), disk / "study", []
    taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in whole.study.rglob("*") if path.is_file())

    for part in (0.0, 0.02, *(chance.random() for _ in range(12)), 0.97):
        shutil.rmtree(study, ignore_errors=True)
        fill(disk, int(part * taken))
        full = forked(arguments(laboratory, study))
        errors = [line for line in full.stderr.splitlines() if not line.startswith("{")]
        assert full.returncode == 2, (part, full.stderr)
        assert len(errors) == 1, errors
        assert errors[0].startswith("error: "), errors
        assert "no room on disk" in errors[0], errors
        assert "free some" in errors[0], errors
        assert str(study) in errors[0], errors
        stopped.append(len(list(study.glob("trials/*"))))
        (disk / "ballast").unlink()

        done = forked(arguments(laboratory, study))

        assert done.returncode == 0, (part, done.stderr)
        assert remains(study) == expected, part
    assert min(stopped) == 0
    assert max(stopped) == 12
