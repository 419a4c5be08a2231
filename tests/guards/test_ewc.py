"""Fisher diagonals against autograd in float64, penalties against dense sums and against the loss that they predict."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.candidate.stream import Candidate
from evomerge.errors import GuardError
from evomerge.guards.ewc import Anchor, Penalties, fisher, write_fisher

TEXTS = [[5, 1, 4, 2, 9], [3, 3, 8], [9, 8, 7, 6, 5, 4], [2], [1, 2, 3]]


def llama(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, **changes}
    return LlamaForCausalLM(LlamaConfig(**settings, num_attention_heads=2, num_key_value_heads=1)).eval()


def loss(model, text):
    """Summed negative log-likelihood of a text, written out token by token."""
    logits = model(input_ids=torch.tensor([text])).logits[0]
    return -sum(logits[i].log_softmax(-1)[text[i + 1]] for i in range(len(text) - 1))


def by_hand(model):
    """Σ (∇ loss)² / tokens through .backward(), in the model's own dtype."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for text in TEXTS:
        if len(text) > 1:
            model.zero_grad()
            loss(model, text).backward()
            for name, p in model.named_parameters():
                total[name] += p.grad**2
    return {name: value / sum(len(text) - 1 for text in TEXTS) for name, value in total.items()}


def stored(folder, model, name="base"):
    """A model directory of one file, and its checkpoint."""
    (folder / name).mkdir()
    save_file({key: value.detach().clone() for key, value in model.named_parameters()}, folder / name / "model.safetensors")
    (folder / name / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    return Checkpoint.open(folder / name)


def candidate(tensors):
    return Candidate.of({}, tensors, "key")


def run(penalties, tensors):
    """The totals after the stream has run, and what came out of it."""
    seen = dict(penalties.watch(candidate(tensors)).weights)
    return dict(penalties.totals), seen


@pytest.fixture
def base(tmp_path):
    """A model in float64 on disk, with its Fisher beside it."""
    model = llama().double()
    checkpoint = stored(tmp_path, model)
    write_fisher(tmp_path / "base.safetensors", fisher(model, TEXTS, checkpoint.tensors), model=checkpoint.fingerprint)
    return model, checkpoint, tmp_path


def test_the_fisher_is_the_mean_square_of_autograds_gradients():
    model = llama().double()

    found = fisher(model, TEXTS, [name for name, _ in model.named_parameters()])

    expected = by_hand(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-18)
    assert all(parameter.grad is None for parameter in llama().parameters())


def test_names_that_share_a_tensor_are_counted_once():
    model = llama(tie_word_embeddings=True)

    found = fisher(model, TEXTS, ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "rotary.inv_freq"])

    assert list(found) == ["model.embed_tokens.weight", "model.norm.weight"]
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_the_penalty_is_the_dense_sum_and_the_stream_is_left_as_it_is(base):
    model, checkpoint, folder = base
    moved = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in model.named_parameters()}
    flat = torch.cat([(moved[name] - p.detach()).flatten() for name, p in model.named_parameters()])
    weight = torch.cat([by_hand(model)[name].flatten() for name, _ in model.named_parameters()])

    totals, seen = run(Penalties([Anchor.open("base", checkpoint, folder)]), moved)

    assert totals["base"] == pytest.approx(0.5 * float(weight @ flat**2), rel=1e-10)
    assert all(torch.equal(seen[name], tensor) for name, tensor in moved.items())


def test_a_stream_run_twice_is_summed_once_and_the_model_itself_costs_nothing(base):
    model, checkpoint, folder = base
    penalties = Penalties([Anchor.open("base", checkpoint, folder)])
    same = {name: p.detach() for name, p in model.named_parameters()}

    first, _ = run(penalties, {name: tensor + 0.1 for name, tensor in same.items()})
    second, _ = run(penalties, {name: tensor + 0.1 for name, tensor in same.items()})

    assert first == second
    assert run(penalties, same)[0] == {"base": 0.0}


def test_a_number_for_every_tensor_weighs_all_of_it_by_its_mean(base):
    model, checkpoint, folder = base
    diagonal = fisher(model, TEXTS, checkpoint.tensors)
    write_fisher(folder / "base.safetensors", diagonal, model=checkpoint.fingerprint, kind="block")
    moved = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in model.named_parameters()}

    totals, _ = run(Penalties([Anchor.open("base", checkpoint, folder)]), moved)

    parts = [diagonal[name].mean() * ((moved[name] - p.detach()) ** 2).sum() for name, p in model.named_parameters()]
    assert totals["base"] == pytest.approx(0.5 * float(sum(parts)), rel=1e-10)
    assert {tuple(tensor.shape) for tensor in load_file(folder / "base.safetensors").values()} == {()}


def test_several_anchors_are_summed_apart_each_around_its_own_model(base):
    _, checkpoint, folder = base
    other = llama(seed=1).double()
    theirs = stored(folder, other, "other")
    write_fisher(folder / "other.safetensors", fisher(other, TEXTS, theirs.tensors), model=theirs.fingerprint)

    anchors = [Anchor.open("base", checkpoint, folder), Anchor.open("other", theirs, folder)]
    totals, _ = run(Penalties(anchors), {name: p.detach() for name, p in other.named_parameters()})

    assert totals["other"] == 0
    assert totals["base"] > 0


def test_where_the_model_is_sure_of_its_texts_a_small_move_costs_the_loss_that_was_predicted():
    """At a minimum the Fisher is the curvature: move the output along a weight, and compare with the loss itself."""
    model = llama().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    texts = [[0, 1], [0, 2]]  # a fair coin after 0: loss ln 2
    for _ in range(100):
        optimizer.zero_grad()
        (sum(loss(model, text) for text in texts) / len(texts)).backward()
        optimizer.step()
    diagonal = fisher(model, texts, ["lm_head.weight"])["lm_head.weight"]
    before = float(sum(loss(model, text) for text in texts)) / len(texts)
    row, column = divmod(int(diagonal.argmax()), diagonal.shape[1])

    with torch.no_grad():
        model.lm_head.weight[row, column] += 0.05
    after = float(sum(loss(model, text) for text in texts)) / len(texts)

    assert 0.5 * float(diagonal[row, column]) * 0.05**2 == pytest.approx(after - before, rel=0.1)


def test_a_fisher_that_is_missing_broken_or_of_another_model_is_named_in_one_line(base):
    _, checkpoint, folder = base
    other = stored(folder, llama(seed=1).double(), "other")
    (folder / "bad.safetensors").write_text("nothing")
    other_shape = {"model.norm.weight": torch.zeros(3)}
    write_fisher(folder / "odd.safetensors", other_shape, model=checkpoint.fingerprint)

    for name, found, message in (
        ("sort", checkpoint, "no Fisher of sort at .*sort.safetensors; estimate it with: evomerge fisher"),
        ("bad", checkpoint, "bad.safetensors is no safetensors file"),
        ("base", other, "base.safetensors was estimated for another model than"),
        ("odd", checkpoint, "does not fit .* at 'model.norm.weight'"),
    ):
        with pytest.raises(GuardError, match=message) as caught:
            Anchor.open(name, found, folder)
        assert "\n" not in str(caught.value)


def test_a_candidate_that_lacks_an_anchored_tensor_and_texts_without_tokens_are_refused(base):
    model, checkpoint, folder = base

    with pytest.raises(GuardError, match=r"the candidate has no 'model.norm.weight'"):
        Penalties([Anchor.open("base", checkpoint, folder)]).watch(
            candidate({name: p.detach() for name, p in model.named_parameters() if name != "model.norm.weight"})
        )
    with pytest.raises(GuardError, match="hold no token to predict"):
        fisher(model, [[1], []], ["model.norm.weight"])
