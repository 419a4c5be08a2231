"""How well a model has a skill: exact match of the answer, or the likeliest of its choices, in one pass of the model."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from .skills import Document
from .tokenizer import PAD, encode

BATCH = 100


def accuracy(model: LlamaForCausalLM, documents: Sequence[Document]) -> float:
    """The share of documents answered: by choice where the documents have wrong choices, else by exact match."""
    answered = chooses if documents[0].wrong else exact
    parts = [answered(model, documents[start : start + BATCH]) for start in range(0, len(documents), BATCH)]
    return torch.cat(parts).float().mean().item()


def exact(model: LlamaForCausalLM, documents: Sequence[Document]) -> Tensor:
    """Whether greedy decoding would write each answer and then a newline: every token is the argmax given the truth."""
    logits, tokens = _logits(model, [document.text for document in documents])
    hits = logits.argmax(-1) == tokens[:, 1:]
    return (hits | ~_answers(documents, tokens)).all(-1)


def chooses(model: LlamaForCausalLM, documents: Sequence[Document]) -> Tensor:
    """Whether the right letter is likelier than each of the wrong ones."""
    logits, _ = _logits(model, [document.text for document in documents])
    after = torch.tensor([len(document.prompt) - 1 for document in documents])
    choices = torch.tensor([encode("".join((document.answer, *document.wrong))) for document in documents])
    scores = logits[torch.arange(len(documents)), after].gather(1, choices)  # [documents, choices]
    return scores.argmax(1) == 0


@torch.inference_mode()
def _logits(model: LlamaForCausalLM, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Padding stands on the right, where causal attention does not see it from the left."""
    longest = max(map(len, texts))
    tokens = torch.tensor([encode(text) + [PAD] * (longest - len(text)) for text in texts])
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    return logits, tokens  # [documents, longest - 1, vocabulary], [documents, longest]


def _answers(documents: Sequence[Document], tokens: Tensor) -> Tensor:
    """Which predicted positions belong to the answers."""
    starts = torch.tensor([len(document.prompt) for document in documents])
    place = torch.arange(1, tokens.shape[1])
    return (place >= starts[:, None]) & (tokens[:, 1:] != PAD)
