"""A whole study in seconds: sources of a few hundred numbers, and a scorer that knows where the optimum lies."""

import textwrap
from pathlib import Path

import torch
from safetensors.torch import save_file

from evomerge.document import dump_yaml, parse_yaml

SCORER = '''
"""Right on a document when the merged numbers are near enough to a target; documents differ in how near is enough."""
import hashlib

def documents(task):
    return [f"{task.removesuffix(' twin')} {i}" for i in range(400)]

def score(weights, config, task, documents):
    w = {name: tensor.float() for name, tensor in weights.items()}
    if task == "kept":
        missed = float(w["layers.0.kept"].abs().mean())
    else:
        missed = float((w[f"layers.{len(task) % 2}.w"] - 0.6).abs().mean())
    if FAILS and abs(float(w["layers.0.w"].mean()) - 0.6) < 0.15:
        raise ArithmeticError("this candidate cannot be scored")
    return [float(missed < 0.9 * int(hashlib.sha256(f"{task} {i}".encode()).hexdigest(), 16) / 2**256) for i in documents]
'''

EXPERIMENT = """
recipe:
  base: base
  sources: {a: a, b: b}
  rules:
    - match: "*"
      method: task_arithmetic
      weight: {a: {range: [0.0, 1.5], points: 2}, b: {range: [0.0, 1.5], points: 2}}
suite: {tasks: {near: 1.0, close: 1.0}, rungs: [20, 60], select: 40, sealed: 200}
guard: {tasks: {kept: 0.1}, sealed: 120, discordance: 0.1}
scoring: {with: function, function: "scorer:score", documents: "scorer:documents"}
search: {sampler: cmaes, trials: 12, eta: 2, finalists: 3, seed: 0}
"""


def build(folder: Path) -> Path:
    """Three sources, a scorer and `space.yaml` in a folder."""
    zero = torch.zeros(2, 40)
    tensors = {
        "base": {"layers.0.w": zero, "layers.1.w": zero, "layers.0.kept": zero},
        "a": {"layers.0.w": zero + 1.2, "layers.1.w": zero, "layers.0.kept": zero + 0.01},
        "b": {"layers.0.w": zero, "layers.1.w": zero + 0.45, "layers.0.kept": zero + 0.01},
    }
    for name, weights in tensors.items():
        (folder / name).mkdir()
        save_file({key: value.clone() for key, value in weights.items()}, folder / name / "model.safetensors")
    (folder / "scorer.py").write_text("FAILS = False\n" + textwrap.dedent(SCORER))
    (folder / "space.yaml").write_text(EXPERIMENT)
    return folder


def change(laboratory: Path, **blocks) -> Path:
    """The laboratory's experiment with some keys changed: `search={"seed": 1}`."""
    data = parse_yaml((laboratory / "space.yaml").read_text(), "space.yaml")
    for block, keys in blocks.items():
        data[block] = {**data[block], **keys}
    (laboratory / "space.yaml").write_text(dump_yaml(data))
    return laboratory / "space.yaml"
