"""Numbers for groups of columns: heads and hidden units, which are rows in one layer and columns in the next."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from evomerge.candidate.live import load
from evomerge.candidate.merge import merge
from evomerge.candidate.stream import Sources, materialize
from evomerge.errors import RecipeError
from evomerge.recipe import EITHER_WAY

REST = {"match": "*", "method": "linear", "sources": ["math"], "weight": 1.0}
NUMBERS = [0.3, -0.2, 0.9, 0.0]
DROPS = ("dare_linear", "dare_ties")


def rules(method, weight, match="*down_proj*"):
    knob = {"slerp": "t", "passthrough": "scale"}.get(method, "weight")
    given = {"match": match, "method": method, knob: weight}
    given |= {"density": 0.4} if method.startswith(("ties", "breadcrumbs")) else {"drop_rate": 0.5} if method in DROPS else {}
    given |= {"sources": ["math"]} if knob != "weight" else {}
    return [given, REST]


def merged(recipe, sources=None):
    return dict(materialize(recipe, sources or Sources()).weights)


def blocks(tensor):
    return tensor.chunk(len(NUMBERS), dim=-1)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("method", EITHER_WAY)
def test_each_group_of_columns_is_what_the_whole_tensor_would_be_with_its_number(make, method, resident):
    numbers = [abs(number) for number in NUMBERS] if method == "slerp" else [number + 0.4 for number in NUMBERS]
    sources = Sources(resident=resident)
    make = partial(make, prefix="whole-")  # in float32, where no two deltas are equally large: the order decides which is kept
    found = merged(make(rules=rules(method, {"columns": numbers})), sources)
    alike = [{"columns": [number] * 4} if method in DROPS else number for number in numbers]  # and which is dropped
    whole = [merged(make(rules=rules(method, number)), sources) for number in alike]

    for name in (name for name in found if "down_proj" in name):
        for place, group in enumerate(blocks(found[name])):
            assert torch.equal(group, blocks(whole[place][name])[place])
    assert all(torch.equal(tensor, whole[0][name]) for name, tensor in found.items() if "down_proj" not in name)


@pytest.mark.parametrize("method", DROPS)
def test_what_is_dropped_under_columns_is_the_share_asked_for(make, method):
    found = merged(make(rules=rules(method, {"columns": NUMBERS[:2]})))
    base = merged(make(rules=[{**REST, "sources": ["base"]}]))
    name = "model.layers.0.mlp.down_proj.weight"
    same = (found[name] == base[name]).double().mean().item()

    assert same == pytest.approx(0.25, abs=0.05)  # dropped from both sources, each at a rate of a half


def test_hidden_units_change_hands_as_a_whole(make, tmp_path):
    """A model whose units are all another's, in rows above and columns below, computes what the other does."""
    units = {"math": {"rows": [1.0, 0.0]}, "code": {"rows": [0.0, 1.0]}}
    across = {source: {"columns": value["rows"]} for source, value in units.items()}
    mlp = [
        {"match": "*down_proj*", "method": "linear", "normalize": False, "weight": across},
        {"match": "*mlp*", "method": "linear", "normalize": False, "weight": units},
    ]
    folder = merge(make(prefix="whole-", rules=[*mlp, REST]), tmp_path / "out")
    model, parents = AutoModelForCausalLM.from_pretrained(folder), {}
    for name in ("math", "code"):
        parents[name] = merged(make(prefix="whole-", rules=[{**REST, "sources": [name]}]))
    state, x = torch.randn(3, 64, dtype=torch.float64), model.model.layers[1].mlp.double()

    def half(tensors, part):
        gate, up, down = (tensors[f"model.layers.1.mlp.{name}_proj.weight"].double() for name in ("gate", "up", "down"))
        inner = torch.nn.functional.silu(state @ gate[part].T) * (state @ up[part].T)
        return inner @ down[:, part].T

    expected = half(parents["math"], slice(0, 48)) + half(parents["code"], slice(48, 96))
    assert_close(x(state), expected)


def test_columns_reach_a_live_model_as_they_reach_the_disk(make, tmp_path):
    recipe = make(rules=rules("task_arithmetic", {"math": {"columns": NUMBERS}, "code": 0.5}))
    written = AutoModelForCausalLM.from_pretrained(merge(recipe, tmp_path / "out"), dtype=torch.bfloat16)
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    for parameter in live.parameters():
        parameter.data.fill_(float("nan"))

    load(materialize(recipe, Sources(resident=True)), live)

    assert all(
        torch.equal(one, other) for one, other in zip(live.state_dict().values(), written.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (rules("della", {"columns": [0.1, 0.2]})[0] | {"density": 0.5}, "della tells columns from rows"),
        (rules("linear", {"columns": [0.1, 0.2, 0.3, 0.4, 0.5]})[0], "5 groups of columns do not divide the 96 columns"),
        (rules("linear", {"columns": [0.1, 0.2]}, "*norm*")[0], "2 groups of columns do not divide the 1 columns"),
        (rules("linear", {"math": {"columns": [0.1, 0.2]}, "code": {"rows": [0.1, 0.2]}})[0], "rows and of columns at once"),
    ],
)
def test_columns_that_cannot_be_are_refused_with_the_remedy(make, given, words):
    with pytest.raises(RecipeError, match=words):
        Sources().plan(make(rules=[given, REST]))


def test_turned_copies_are_counted_in_what_a_search_keeps(make):
    sources, plans = Sources(resident=True), [make(rules=rules("linear", weight)) for weight in ({"columns": [0.2, 0.8]}, 0.5)]
    turned, plain = (
        next(sources._load(recipe, step) for step in sources.plan(recipe).steps if "down_proj" in step.name) for recipe in plans
    )

    assert turned.beside - plain.beside == sum(turned.tensors.values()) > 0
