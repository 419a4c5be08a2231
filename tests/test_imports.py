"""The rooms import one way, and what is light stays light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import evomerge

PACKAGE = Path(evomerge.__file__).parent
ORDER = [
    "errors", "document", "recipe", "space", "mergekit", "rope", "masks", "kernels", "methods", "candidate", "scoring",
    "guards", "healing", "study", "report", "bench", "zoo", "start", "doctor", "cli",
]  # fmt: skip
HEAVY = ("torch", "transformers", "optuna", "scipy", "lm_eval", "datasets", "vllm", "matplotlib", "numpy")


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms that a file imports, wherever in it the import stands."""
    package = ".".join(["evomerge", *path.relative_to(PACKAGE).parent.parts])
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            names = [".".join(filter(None, [stem, node.module]))]
            names += [f"{names[0]}.{alias.name}" for alias in node.names] if names[0] == "evomerge" else []
        for name in names:
            if name.startswith("evomerge.") and name != "evomerge.__version__":
                yield name.split(".")[1]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_room_imports_only_from_rooms_before_it(path):
    assert room(path) in ORDER, f"{path.name} stands in no known room"

    later = [name for name in imported_rooms(path) if ORDER.index(name) > ORDER.index(room(path))]

    assert later == []


def loaded_after(code, *arguments):
    script = f"import sys\n{code}\nprint('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, env=os.environ)
    return run.stdout.rsplit("loaded:", 1)[1].split()


RUN = """
from evomerge.cli import app
try:
    app(sys.argv[1:], standalone_mode=False)
except SystemExit:
    pass
"""


@pytest.mark.parametrize("module", ["evomerge", "evomerge.recipe", "evomerge.space", "evomerge.candidate.plan", "evomerge.cli"])
def test_a_light_module_loads_nothing_heavy(module):
    assert loaded_after(f"import {module}") == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["search", "--help"], ["merge", "--help"], ["compare", "--help"], ["guard", "--help"]]
)
def test_help_loads_nothing_heavy(arguments):
    assert loaded_after(RUN, *arguments) == []


def test_a_dry_merge_loads_nothing_heavy(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{base: zoo:models/base, sources: {sort: zoo:models/sort}, rules: [{match: '*', method: ties, density: 0.2}],"
        " context: {rope_type: yarn, factor: 2}}"
    )

    assert loaded_after(RUN, "merge", str(recipe), "--dry-run") == []


def test_the_public_names_are_all_there():
    for name in evomerge.__all__:
        assert getattr(evomerge, name) is not None
    assert dir(evomerge) == sorted(evomerge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'merg'"):
        evomerge.merg  # noqa: B018
