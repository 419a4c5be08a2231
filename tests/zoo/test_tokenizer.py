"""One token a character, nothing added, nothing lost."""

from itertools import islice
from random import Random

import pytest
from transformers import AutoTokenizer

from evomerge import zoo
from evomerge.zoo.skills import SKILLS, stream
from evomerge.zoo.tokenizer import CHARACTERS, VOCABULARY, encode

TEXTS = [CHARACTERS, "  two  spaces \n\n and lines\n", "sort dacb=abcd\n", ""]
TEXTS += [document.text for skill in SKILLS for document in islice(stream(skill, "train", Random(0)), 5)]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(zoo.model("base"))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_no_special_token_is_added_whatever_the_engine_asks_for(tokenizer, text, special):
    assert tokenizer(text, add_special_tokens=special)["input_ids"] == encode(text)


def test_a_character_outside_the_vocabulary_is_unknown_and_not_an_error(tokenizer):
    assert tokenizer("é")["input_ids"] == [VOCABULARY["<unk>"]]
