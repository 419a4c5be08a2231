"""Workers for tests of the executor: real objects in real processes, none of them a model."""

import os
import time
from pathlib import Path

from evomerge.errors import CheckpointError
from evomerge.scoring.scores import Row, Scores
from evomerge.study.executor import Job, Result


class Answering:
    """Scores every document by its number, and does what the first document tells it to."""

    def __init__(self, folder: Path):
        self.folder = folder

    def evaluate(self, job: Job) -> Result:
        task, documents = next(iter(job.documents.items()))
        if task == "die-once" and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(9)
        if task == "die":
            os._exit(9)
        if task == "raise":
            raise ZeroDivisionError("by nought")
        if task == "lose-once" and not (self.folder / "lost").exists():
            (self.folder / "lost").touch()
            import torch

            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")
        if task == "refuse":
            raise CheckpointError("base: has no tensors")
        if task == "sleep":
            time.sleep(0.2)
        (self.folder / f"worker-{os.getpid()}").touch()
        return Result(Scores(tuple(Row(task, doc, str(doc), float(doc % 2)) for doc in documents)))

    def close(self) -> None:
        (self.folder / f"closed-{os.getpid()}").touch()


class Broken:
    """A worker that cannot be made."""

    def __init__(self):
        raise CheckpointError("base: has no tensors")
