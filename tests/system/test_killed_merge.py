"""`evomerge merge`, killed at any moment: no model, or a folder that by its name is unfinished; the same command completes it."""

import os
import signal

import pytest

from evomerge.candidate import save
from tests.system.searches import forked, steps_in

RECIPE = """
base: zoo:models/base
sources: {sort: zoo:models/sort, flip: zoo:models/flip}
rules: [{match: "*", method: ties, density: 0.3, weight: 0.5}]
"""


@pytest.fixture(scope="module")
def merge(tmp_path_factory):
    """The command, the bytes that it writes, and every change that it makes on disk, in order."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(RECIPE)
    steps, place = folder / "steps.log", folder / "place"
    place.mkdir()

    def watched():
        log = os.open(steps, os.O_WRONLY | os.O_CREAT)
        steps_in(place, lambda step: os.write(log, f"{step}\n".encode()))

    words = ["merge", str(folder / "recipe.yaml"), "--out"]
    done = forked([*words, str(place / "model")], watched)
    assert done.returncode == 0, done.stderr
    return words, contents(place / "model"), steps.read_text().splitlines()


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def completed(merge, place, moment):
    """What a kill left is no model, or the whole one; the command again makes it whole and leaves nothing else."""
    words, whole, _ = merge
    left = sorted(path.name for path in place.iterdir())
    assert left in ([], [".model.partial"], ["model"]), moment
    if left == ["model"]:
        assert contents(place / "model") == whole, moment
        return
    done = forked([*words, str(place / "model")])
    assert done.returncode == 0, (moment, done.stderr)
    assert contents(place / "model") == whole, moment
    assert [path.name for path in place.iterdir()] == ["model"], moment


def test_killed_before_any_change_on_disk(merge, tmp_path):
    words, _, steps = merge
    assert {"mkdir", "rename"} <= {step.split()[0].removeprefix("os.") for step in steps}
    for number, step in enumerate(steps):
        place = tmp_path / str(number)
        place.mkdir()
        left = [number]

        def dies(place=place, left=left):
            def on_step(_):
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

            steps_in(place, on_step)

        killed = forked([*words, str(place / "model")], dies)
        assert killed.returncode == -signal.SIGKILL, step
        completed(merge, place, step)


@pytest.mark.parametrize("tensors", [1, 20, 56])
def test_killed_with_some_tensors_written(merge, tmp_path, tensors):
    words, whole, _ = merge

    def dies():
        known, left = save._check_tensor, [tensors]

        def check(*arguments):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            known(*arguments)

        save._check_tensor = check

    killed = forked([*words, str(tmp_path / "model")], dies)

    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".model.partial"]
    assert contents(tmp_path / ".model.partial")["model.safetensors"] != whole["model.safetensors"]
    completed(merge, tmp_path, tensors)
