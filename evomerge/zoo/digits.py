"""M2N2's digits experiment, pre-trained setting (Abrantes et al., 2025): two small networks, half of the digits each, merged.

    python -m evomerge.zoo.digits search_spaces/digits.yaml --seeds 0 1 2 3 4 --out results/digits

scikit-learn's `load_digits`: the first 80 % are for training, the last 20 % for the test; raw pixels. Two networks 64-256-10 from
different starts, each trained for ten full-batch steps of Adam at .003 on digits 0-4 or 5-9. The search sees training images
only; its winner is asked all test images once. Variant `rows` gives each of the ten rows of the last layer numbers of its own:
rows are classes, so it knows more of the task than `tensors` does. `units` gives numbers to 32 groups of hidden units, as they
come, with their rows in the first layer and their columns in the last, and knows no class; M2N2's split points cut both layers.
A trial is a forward pass over the images that steer; M2N2 had 10,000.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.document import dump_yaml, read_yaml
from evomerge.errors import MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN, CLASSES, STEPS, RATE = 256, 10, 10, 0.003
UNITS = 32  # groups of hidden units, as they come: they know no class
VARIANTS: dict[str, dict[str, dict[str, int]]] = {  # the groups of each layer that have numbers of their own
    "tensors": {},
    "units": {"hidden": {"rows": UNITS}, "output": {"columns": UNITS}},
    "rows": {"output": {"rows": CLASSES}},
}
M2N2 = "M2N2 69.7 ± 0.8, its best single SLERP 57.8"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m evomerge.zoo.digits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("space", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--trials", type=int, default=1000)
    asked = parser.parse_args(arguments)
    for variant in asked.variants:
        found = [study(asked.space, asked.out, variant, seed, asked.trials) for seed in asked.seeds]
        values = ", ".join(f"{100 * each:.1f}" for each in found)
        spread = f" ± {100 * statistics.stdev(found):.1f}" if len(found) > 1 else ""
        line = f"{variant}, {asked.trials} trials: test accuracy {100 * statistics.mean(found):.1f}{spread} ({values}); {M2N2}"
        sys.stdout.write(line + "\n")


def study(space: Path, out: Path, variant: str, seed: int, trials: int) -> float:
    """Test accuracy of the winner of one seed's search; what is there already is kept."""
    family = out / f"seed-{seed}"
    for name, digits in {"low": range(5), "high": range(5, 10)}.items():
        if not (family / name / "model.safetensors").exists():
            train(family / name, list(digits), 2 * seed + (name == "high"))
    file, folder = family / f"{variant}-{trials}.yaml", family / f"{variant}-{trials}"
    data = {**experiment(read_yaml(space), family, variant, seed, trials), "root": str(space.parent.resolve())}
    file.write_text(dump_yaml(data), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "evomerge.cli",
        "search",
        str(file),
        "--out",
        str(folder),
        "--resume",
        "--reopen",
        "--workers",
        "1",
    ]
    if (code := subprocess.run([*command, "--log", "quiet"], stdout=subprocess.DEVNULL).returncode) not in (0, 3, 5):
        raise SystemExit(code)
    return tested(folder / "best/model/model.safetensors")


def experiment(data: dict[str, Any], family: Path, variant: str, seed: int, trials: int) -> dict[str, Any]:
    """The space over one seed's networks, with numbers for the groups of a variant; a bias has no columns, so its own then."""
    data = copy.deepcopy(data)
    recipe = data["recipe"]
    recipe["base"], recipe["sources"]["high"] = str((family / "low").resolve()), str((family / "high").resolve())
    for layer, groups in VARIANTS[variant].items():
        place = next(i for i, rule in enumerate(recipe["rules"]) if rule["match"].startswith(layer))
        whole = recipe["rules"][place]
        weight = {source: {**each, **groups} for source, each in whole["weight"].items()}
        bias = [{**whole, "match": f"{layer}.bias"}] if "columns" in groups else []
        recipe["rules"][place : place + 1] = [*bias, {**whole, "weight": weight}]
    data["search"] |= {"seed": seed, "trials": trials}
    return data


def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images [n, 64] in float32 and labels [n], for training and for the test. Raises MissingExtra without scikit-learn."""
    import torch

    try:
        found = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError:
        raise MissingExtra("the digits come with scikit-learn: pip install scikit-learn") from None
    images, labels = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)
    cut = int(0.8 * len(images))
    return (images[:cut], labels[:cut]), (images[cut:], labels[cut:])


def train(folder: Path, digits: Sequence[int], seed: int) -> None:
    """One network on the training images of some digits, written as safetensors."""
    (images, labels), _ = load()
    chosen = (labels[:, None] == labels.new_tensor(digits)).any(dim=1)
    write(folder, fitted(images[chosen], labels[chosen], seed))


def fitted(images: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """Weights of a 64-256-10 network after ten full-batch steps of Adam."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden, output = torch.nn.Linear(images.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, CLASSES)
    optimizer = torch.optim.Adam([*hidden.parameters(), *output.parameters()], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(output(torch.relu(hidden(images))), labels)
        torch.autograd.backward(loss)
        optimizer.step()
    layers = {"hidden": hidden, "output": output}
    return {f"{layer}.{name}": p.detach() for layer, module in layers.items() for name, p in module.named_parameters()}


def write(folder: Path, weights: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), folder / "model.safetensors")


def accuracies(weights: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """1 or 0 for each image, [n]."""
    import torch

    inner = torch.relu(images @ weights["hidden.weight"].float().T + weights["hidden.bias"].float())
    logits = inner @ weights["output.weight"].float().T + weights["output.bias"].float()
    return (logits.argmax(dim=1) == labels).float()


def tested(file: Path) -> float:
    """Accuracy on all test images."""
    from safetensors.torch import load_file

    _, (images, labels) = load()
    return float(accuracies(load_file(file), images, labels).mean())


if __name__ == "__main__":
    main()
