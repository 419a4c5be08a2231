"""lm-eval task files read once: data files beside them, documents in memory, no network and no cache that could be stale."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.document import nearest
from evomerge.errors import SuiteError
from evomerge.recipe import locate

LOCAL = ("json", "csv", "text", "parquet", "arrow")  # builders of `datasets` over files, not repositories
CODE_METRICS = ("code_eval", "pass@1", "pass_at_k", "pass_at_1")


def load_tasks(
    names: Sequence[str], include: Sequence[str] = (), *, options: Mapping[str, Any] | None = None, allow_code: bool = False
) -> dict[str, Any]:
    """The lm-eval tasks of these names, from the folders of `include` or, without any, from lm-eval itself."""
    folders = [locate(folder) for folder in include]
    _go_offline(folders)
    from lm_eval.tasks import TaskManager

    _hush()
    with _reasons(", ".join(map(str, folders)) or "lm-eval's own tasks"):
        manager = TaskManager(include_path=[str(folder) for folder in folders] or None, include_defaults=not folders)
    return {name: _load(name, manager, folders, options or {}, allow_code) for name in names}


def document_hash(task: str, document: Any) -> str:
    """SHA-256 of a document's content and its task."""
    return hashlib.sha256(json.dumps([task, document], sort_keys=True, default=str).encode()).hexdigest()


def content_hash(document: Any) -> str:
    """SHA-256 of a document's content, whatever task asks it."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def file_fingerprint(task: Any) -> str:
    """SHA-256 of the task file, of what it includes, and of the Python beside it that it calls."""
    source = (task.config.metadata or {}).get("config_source", "")
    digest = hashlib.sha256()
    for path in _files(Path(source)) if source and Path(source).is_file() else ():
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _load(name: str, manager: Any, folders: Sequence[Path], options: Mapping[str, Any], allow_code: bool) -> Any:
    from lm_eval.api.task import ConfigurableTask

    entry = manager.task_index.get(name)
    where = ", ".join(map(str, folders)) or "lm-eval"
    if entry is None:
        raise SuiteError(f"{where}: no task {name!r}{nearest(name, manager.all_subtasks) if folders else _guess(name, manager)}")
    if name not in manager.all_subtasks:
        raise SuiteError(f"{where}: {name!r} is a group of tasks; name the tasks that are meant")
    path = entry.yaml_path
    _refuse_code(name, path, allow_code)
    with _reasons(f"{path}: task {name!r}"), _code_allowed(allow_code):
        config = _config(name, path, options)
        if "class" in config:
            task = manager.load([name])["tasks"][name]
        else:
            task = ConfigurableTask(config=_with_data(name, path, config))
        if not len(task.eval_docs):
            raise SuiteError(f"{path}: task {name!r} has no documents; its data is empty")
        _apply(task, options)
    return task


def _guess(name: str, manager: Any) -> str:
    import difflib  # lm-eval has ten thousand tasks: name only what is near

    close = difflib.get_close_matches(name, manager.all_subtasks, n=3)
    return f"; did you mean {', '.join(close)}?" if close else "; `lm_eval --tasks list` shows all that there are"


def _config(name: str, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    config = {key: value for key, value in load_yaml(path, resolve_func=True).items() if key not in ("tag", "group", "task_list")}
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {"_metadata": metadata} if metadata else {}
    return {**config, "task": name, "metadata": {**metadata, **options.get("metadata", {}), "config_source": str(path)}}


def _with_data(name: str, path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config with its data files made absolute, and read here where they are JSON: `datasets` would copy them to a cache."""
    kwargs = dict(config.get("dataset_kwargs") or {})
    files = kwargs.get("data_files")
    if config.get("dataset_path") not in LOCAL or files is None:
        return config
    splits = {
        split: _paths(name, path, named) for split, named in (files if isinstance(files, dict) else {"train": files}).items()
    }
    if (
        config["dataset_path"] == "json"
        and set(kwargs) == {"data_files"}
        and not any(_remote(file) for named in splits.values() for file in named)
    ):
        return {**config, "dataset_kwargs": {}, "custom_dataset": lambda **_: _read(name, splits)}
    # a cache of its own for each process: the shared one goes by time stamps
    cache = {"cache_dir": tempfile.mkdtemp(prefix="evomerge-datasets-")}
    return {**config, "dataset_kwargs": {**kwargs, "data_files": splits, **cache}}


def _remote(file: str) -> bool:
    return "://" in file


def _paths(name: str, path: Path, named: str | Sequence[str]) -> list[str]:
    found: list[str] = []
    for pattern in [named] if isinstance(named, str) else named:
        # beside the task file, or where lm-eval itself would look: in the working directory
        matches = [pattern] if _remote(pattern) else _glob(path.parent, pattern) or _glob(Path.cwd(), pattern)
        if not matches:
            raise SuiteError(f"{path}: task {name!r} needs the file {path.parent / pattern}, which is not there")
        found += matches
    return found


def _glob(folder: Path, pattern: str) -> list[str]:
    path = folder / pattern  # an absolute pattern stands for itself
    if path.is_file():
        return [str(path)]
    return sorted(str(file) for file in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if file.is_file())


def _read(name: str, splits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    from datasets import Dataset

    data = {}
    for split, files in splits.items():
        rows = [row for file in files for row in _rows(Path(file))]
        if not rows:
            raise SuiteError(f"{', '.join(files)}: task {name!r} has no documents here; the file is empty")
        columns = dict.fromkeys(key for row in rows for key in row)
        data[split] = Dataset.from_dict({key: [row.get(key) for row in rows] for key in columns})
    return data


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    lines: Iterable[tuple[int, Any]]
    lines = enumerate(json.loads(text), 1) if text.lstrip().startswith("[") else enumerate(text.splitlines(), 1)
    for number, line in lines:
        if line == "":
            continue
        try:
            row = json.loads(line) if isinstance(line, str) else line
        except ValueError:
            raise SuiteError(f"{file}, line {number}: not valid JSON") from None
        if not isinstance(row, dict):
            raise SuiteError(f"{file}, line {number}: a document must be a JSON object")
        yield row


def _apply(task: Any, options: Mapping[str, Any]) -> None:
    """What the experiment sets for all tasks; a task that says `num_fewshot: 0` itself keeps it, as in lm-eval."""
    if task.get_config("output_type") == "generate_until" and options.get("gen_kwargs"):
        task.set_config(key="generation_kwargs", value=dict(options["gen_kwargs"]), update=True)
    asked, own = options.get("num_fewshot"), task.get_config("num_fewshot")
    task.set_config(key="num_fewshot", value=own or 0 if asked is None or own == 0 else asked)


def is_code(task: Any) -> bool:
    """Does scoring this task run what the model wrote?"""
    return bool(task.get_config("unsafe_code")) or any(metric in CODE_METRICS for metric in task.higher_is_better())


def _refuse_code(name: str, path: Path | None, allowed: bool) -> None:
    """Looks at the text of the files: the Python beside a code task may run code as soon as it is imported."""
    if allowed or path is None:
        return
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in _files(path) if file.suffix != ".py"]
    unsafe = [
        text for text in texts if re.search(r"^\s*unsafe_code\s*:\s*[\"']?(true|yes|on|1)\b", text, re.MULTILINE | re.IGNORECASE)
    ]
    metric = [text for text in texts if re.search(rf"metric\s*:.*\b({'|'.join(CODE_METRICS)})\b", text)]
    if unsafe or metric:
        raise SuiteError(
            f"{path}: task {name!r} runs code that the model writes; set `scoring.allow_code: true` to let it, in a child"
            " process with limits and no network"
        )


def _files(path: Path) -> list[Path]:
    """A task file, the files it includes, and the modules it takes functions from."""
    if path.suffix not in (".yaml", ".yml", "") or not path.is_file():
        return [path]
    text = path.read_text(encoding="utf-8", errors="replace")
    names = re.findall(r"^include\s*:\s*[\"']?([^\s\"'#]+)", text, re.MULTILINE)
    modules = [f"{module.replace('.', '/')}.py" for module in re.findall(r"!function\s+([\w.]+)\.\w+", text)]
    found = [path, *(path.parent / module for module in dict.fromkeys(modules) if (path.parent / module).is_file())]
    for name in names:
        if (path.parent / name).is_file():
            found += _files(path.parent / name)
    return found


def _go_offline(folders: Sequence[Path]) -> None:
    """Before anything of Hugging Face is imported: no request leaves the machine if all data files are local."""
    texts = [file.read_text(encoding="utf-8", errors="replace") for folder in folders for file in folder.rglob("*.y*ml")]
    paths = {name for text in texts for name in re.findall(r"^dataset_path\s*:\s*[\"']?([^\s\"'#]+)", text, re.MULTILINE)}
    if folders and paths <= set(LOCAL):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def _hush() -> None:
    """lm-eval and datasets tell much, on standard error, in the middle of a live display."""
    import datasets

    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()


@contextlib.contextmanager
def _reasons(where: str) -> Iterator[None]:
    """Whatever a task file makes lm-eval raise, as one line that names the file."""
    try:
        yield
    except SuiteError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise SuiteError(f"{where}: lm-eval cannot load it ({type(error).__name__}: {line})") from error


@contextlib.contextmanager
def _code_allowed(allowed: bool) -> Iterator[None]:
    """Code metrics want this variable already when their module is imported; nothing the model wrote runs here."""
    before = os.environ.get("HF_ALLOW_CODE_EVAL")
    if allowed:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        yield
    finally:
        if allowed and before is None:
            del os.environ["HF_ALLOW_CODE_EVAL"]
