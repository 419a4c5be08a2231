"""Texts packed into full rows."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evomerge.errors import DocumentError
from evomerge.healing.texts import rows
from evomerge.recipe import Heal

END = 0


@pytest.fixture(scope="module")
def tokenizer():
    """A token a letter, a = 1 to z = 26, and an end of text that it never writes by itself."""
    words = {"<eos>": END} | {chr(96 + number): number for number in range(1, 27)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "heal.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", "defgh", "ij")))
    return path


def heal(path, tokens):
    return Heal(tokens=tokens, texts=str(path), teachers={"base": 1.0})


def documents(packed):
    """What lies between the ends of text, the last one perhaps cut."""
    text = "".join("|" if token == END else chr(96 + token) for token in packed.flatten().tolist())
    return text.split("|")


def test_every_row_is_full_and_there_are_as_many_as_the_tokens_need(file, tokenizer):
    assert rows(heal(file, 9), tokenizer, 4, seed=0).shape == (3, 4)
    assert rows(heal(file, 8), tokenizer, 4, seed=0).shape == (2, 4)


def test_texts_stand_whole_and_apart_and_repeat_when_all_were_used(file, tokenizer):
    found = documents(rows(heal(file, 130), tokenizer, 13, seed=0))[:-1]  # 13 tokens: all three and their ends

    rounds = [found[i : i + 3] for i in range(0, 30, 3)]
    assert all(sorted(texts) == ["abc", "defgh", "ij"] for texts in rounds)
    assert len({tuple(texts) for texts in rounds}) > 1  # in a new order


def test_the_order_is_the_seeds(file, tokenizer):
    first, again, other = (rows(heal(file, 260), tokenizer, 13, seed) for seed in (0, 0, 1))

    assert first.equal(again)
    assert not first.equal(other)


def test_rows_for_fewer_tokens_are_the_first_of_more(file, tokenizer):
    assert rows(heal(file, 40), tokenizer, 8, 0).equal(rows(heal(file, 400), tokenizer, 8, 0)[:5])


def test_a_line_separator_inside_a_text_does_not_end_its_line(tmp_path, tokenizer):
    path = tmp_path / "heal.jsonl"
    path.write_text(json.dumps({"text": "ab\u2028c"}, ensure_ascii=False), encoding="utf-8")

    assert rows(heal(path, 4), tokenizer, 4, 0).tolist() == [[1, 2, END, 3]]  # what it does not know is its <unk>


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "heal.jsonl: cannot be read"),
        ("", "heal.jsonl: no text in it"),
        ('{"text": ""}\n', "heal.jsonl: no text in it"),
        ('{"text": "ab"}\n{"txt": "cd"}\n', "heal.jsonl, line 2: no text"),
        ('{"text": "ab"}\n\n{"text"\n', "heal.jsonl, line 3: not valid JSON"),
        ('["ab"]\n', "heal.jsonl, line 1: no text"),
    ],
)
def test_a_file_without_texts_is_named_with_the_line(tmp_path, tokenizer, content, complaint):
    path = tmp_path / "heal.jsonl"
    if content is not None:
        path.write_text(content)

    with pytest.raises(DocumentError, match=complaint):
        rows(heal(path, 4), tokenizer, 4, 0)
