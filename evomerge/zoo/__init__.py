"""Tiny real language models made by this project, the script that trained them, and the tasks that judge them."""

from pathlib import Path

ROOT = Path(__file__).parent
MODELS = ROOT / "models"
TASKS = ROOT / "tasks"


def model(name: str) -> Path:
    """The directory of a shipped model, such as `base` or `sort`."""
    return MODELS / name


def task_names() -> list[str]:
    """The tasks that the zoo brings along, by the names that lm-eval knows them by."""
    return sorted(path.stem for path in TASKS.glob("*.yaml"))
