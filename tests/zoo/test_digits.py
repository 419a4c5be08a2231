"""M2N2's experiment: networks, accuracies and the variant with rows; the digits themselves come with scikit-learn."""

import torch

from evomerge.candidate.stream import Sources, materialize
from evomerge.document import Place, read_yaml
from evomerge.space import Space
from evomerge.zoo.digits import CLASSES, HIDDEN, UNITS, VARIANTS, accuracies, experiment, fitted, write

SPACE = "search_spaces/digits.yaml"


def images(count=200, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=drawn)
    centres = torch.nn.functional.pad(12 * torch.eye(CLASSES).repeat_interleave(6, dim=1), (0, 4))
    return centres[labels] + torch.rand((count, 64), generator=drawn), labels


def test_training_repeats_with_its_seed_and_leaves_others_draws_alone():
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (fitted(*images(), seed) for seed in (1, 1, 2))

    assert torch.equal(torch.rand(3), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["hidden.weight"], other["hidden.weight"])


def test_a_network_learns_the_digits_it_is_shown_and_no_others():
    pictures, labels = images(400)
    low = labels < 5
    weights = fitted(pictures[low], labels[low], seed=0)

    right = accuracies(weights, pictures, labels)

    assert right[low].mean() > 0.6
    assert right[~low].mean() == 0


def test_accuracy_is_that_of_the_plain_network():
    pictures, labels = images()
    weights = fitted(pictures, labels, seed=3)
    network = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, CLASSES))
    network.load_state_dict(
        {
            f"{layer}.{name}": weights[f"{kind}.{name}"]
            for layer, kind in ((0, "hidden"), (2, "output"))
            for name in ("weight", "bias")
        }
    )

    assert accuracies(weights, pictures, labels).tolist() == (network(pictures).argmax(dim=1) == labels).float().tolist()


def test_rows_give_every_class_numbers_of_its_own_and_units_every_group(tmp_path):
    counts = {}
    for variant in VARIANTS:
        data = experiment(read_yaml(SPACE), tmp_path, variant, seed=0, trials=5)
        counts[variant] = len(Space.from_data(data["recipe"], Place("recipe")).parameters)

    assert counts == {"tensors": 4, "units": 2 * UNITS + 2 * UNITS + 2, "rows": 2 + 2 * CLASSES}


def test_a_unit_of_one_network_reads_and_is_read_with_that_networks_weights(tmp_path):
    pictures, labels = images()
    parents = {name: fitted(pictures, labels, seed) for seed, name in enumerate(("low", "high"))}
    for name, weights in parents.items():
        write(tmp_path / name, weights)
    data = experiment(read_yaml(SPACE), tmp_path, "units", seed=0, trials=5)
    space = Space.from_data(data["recipe"], Place("recipe"))
    halves = {
        p.name: float((".base" in p.name) == (int(p.name.rpartition("#")[2]) < UNITS // 2))
        for p in space.parameters
        if "#" in p.name
    }
    recipe = space.build({p.name: halves.get(p.name, float(".base" in p.name)) for p in space.parameters})

    merged = dict(materialize(recipe, Sources()).weights)

    half = HIDDEN // 2
    assert torch.equal(
        merged["hidden.weight"], torch.cat([parents["low"]["hidden.weight"][:half], parents["high"]["hidden.weight"][half:]])
    )
    both = [parents["low"]["output.weight"][:, :half], parents["high"]["output.weight"][:, half:]]
    assert torch.equal(merged["output.weight"], torch.cat(both, dim=1))
    assert torch.equal(merged["output.bias"], parents["low"]["output.bias"])
