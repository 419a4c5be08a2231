"""What only a GPU can show: offsets past 2³¹ elements, copies that overlap, results written straight into place.

    pytest -m gpu tests/kernels

Bandwidth is not asserted here: `python -m evomerge.bench kernels` prints it.
"""

import math

import pytest
import torch

from evomerge import kernels, masks
from evomerge.candidate.conveyor import Conveyor
from evomerge.candidate.placement import Load, Room, Shelf
from evomerge.masks import Ballot, Bands, Drops, Trim
from evomerge.methods import combine as specification
from evomerge.methods.della import ranks
from evomerge.methods.inputs import Inputs
from evomerge.methods.table import METHODS, merge_tensor
from evomerge.methods.vectors import gram, gram_of_rows, mix_rows
from tests.methods.cases import KNOBS, OTHERWISE, inputs

pytestmark = pytest.mark.gpu

BEYOND = 2**31 + 4096
END = 4096
METHODS_AND_KNOBS = [(method, table[method]) for table in (KNOBS, OTHERWISE) for method in METHODS]


def zeros_that_end_in(*values: float) -> torch.Tensor:
    tensor = torch.zeros(BEYOND, dtype=torch.bfloat16, device="cuda")
    tensor[-len(values) :] = torch.tensor(values)
    return tensor


@pytest.mark.parametrize(("method", "knobs"), METHODS_AND_KNOBS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_kernel_is_as_near_to_float64_as_torch_on_the_cpu(method, knobs, dtype):
    given = inputs(method, (63, 100), dtype)
    exact = Inputs(given.base.double(), tuple(source.double() for source in given.sources), given.place)
    there = Inputs(given.base.cuda(), tuple(source.cuda() for source in given.sources), given.place)

    fused = merge_tensor(method, there, knobs, torch.float32).cpu()

    with kernels.backend("torch"):
        truth, plain = merge_tensor(method, exact, knobs), merge_tensor(method, given, knobs, torch.float32)
    assert (fused - truth).norm() <= 2 * (plain - truth).norm() + 1e-6 * truth.norm()


@pytest.mark.parametrize("keep", ["all", "trim", "band"])
def test_merges_beyond_2_to_the_31_elements(keep):
    source = zeros_that_end_in(1.0, 2.0, 3.0)
    masks_of = {"all": None, "trim": [Trim(2.0, BEYOND)], "band": Bands((Trim(2.0, BEYOND),), (Trim(3.0, BEYOND),), (1.0,))}
    kept = {"all": [2.0, 4.0, 6.0], "trim": [0.0, 4.0, 6.0], "band": [0.0, 4.0, 0.0]}

    merged = specification.combine(None, [source], [(2.0,)], keep=masks_of[keep], subtract=False)

    assert merged[-3:].tolist() == kept[keep]
    assert not merged[:-3].any()


def test_masks_beyond_2_to_the_31_elements_are_those_of_the_cpu():
    source, key = torch.ones(BEYOND, dtype=torch.bfloat16, device="cuda"), masks.key(0, "math", "t")

    merged = specification.combine(None, [source], [(1.0,)], keep=Drops((0.5,), (key,), (1.0,)), subtract=False)

    assert torch.equal(merged[-END:].cpu() == 1, masks.draw(key, BEYOND - END, END) >= 0.5)


def test_an_election_beyond_2_to_the_31_elements():
    base, one, other = zeros_that_end_in(0.0), zeros_that_end_in(4.0), zeros_that_end_in(-1.0)

    merged = specification.combine(base, [one, other], [(1.0,), (1.0,)], ballot=Ballot(True, True))

    assert merged[-1].item() == 4.0


def test_inner_products_and_rows_beyond_2_to_the_31_elements():
    source, width = zeros_that_end_in(3.0, 3.0), 4096
    deltas = specification.Deltas(None, [source, source], None, False)

    assert gram(deltas).tolist() == [[18.0, 18.0], [18.0, 18.0]]
    assert gram_of_rows(deltas, width)[-1].tolist() == [[18.0, 18.0], [18.0, 18.0]]
    coefficients = torch.ones(BEYOND // width, 2, device="cuda")
    coefficients[-1] = 5.0
    assert mix_rows(deltas, width, coefficients, source.shape, torch.bfloat16)[-3:].tolist() == [0.0, 30.0, 30.0]


def test_ranks_of_a_matrix_are_those_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    base, source = (torch.randn(63, 4096, generator=generator).bfloat16() for _ in range(2))

    assert torch.equal(ranks(base.cuda(), source.cuda(), 4096).cpu(), ranks(base, source, 4096))


def test_results_are_written_where_they_are_to_be():
    source, target = torch.ones(63, 100, device="cuda"), torch.full((63, 100), math.nan, device="cuda")

    with kernels.together(), kernels.into(target):
        merged = specification.combine(None, [source], [(2.0,)], subtract=False)

    assert kernels.same_memory(merged, target)
    assert target.eq(2).all()


def test_pinned_tensors_arrive_whole_while_others_are_merged():
    device = torch.device("cuda", torch.cuda.current_device())
    shelf = Shelf(device, Room(0, 1 << 30))
    shelf.assign([Load({("base", str(i)): 1 << 24}) for i in range(8)])
    waiting = {("base", str(i)): shelf.put(("base", str(i)), torch.full((1 << 22,), float(i))) for i in range(8)}
    assert all(tensor.is_pinned() for tensor in waiting.values())

    sums = []
    for i, tensors in Conveyor(device, lambda i: {("base", str(i)): waiting["base", str(i)]}).run(range(8)):
        sums.append((tensors["base", str(i)] * 2).sum(dtype=torch.float64))

    assert [total.item() for total in sums] == [2.0 * i * (1 << 22) for i in range(8)]


def test_room_is_a_share_of_what_is_free():
    device = torch.device("cuda", torch.cuda.current_device())

    assert 0 < Room.of(device).device < torch.cuda.mem_get_info(device)[0]
