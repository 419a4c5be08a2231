"""The generators say what is true, and the split keeps test documents out of training."""

from itertools import islice
from random import Random

import pytest

from evomerge.zoo.skills import SKILLS, distinct, past_tense, split_of, stream


def first(skill: str, count: int) -> list[tuple[str, str]]:
    return [(d.prompt, d.answer) for d in islice(stream(skill, "train", Random(7)), count)]


def test_sorting_and_flipping_answer_with_the_letters_asked_about():
    for prompt, answer in first("sort", 200):
        assert answer == "".join(sorted(prompt.removeprefix("sort ").removesuffix("=")))
    for prompt, answer in first("flip", 200):
        assert answer == "".join(reversed(prompt.removeprefix("flip ").removesuffix("=")))


@pytest.mark.parametrize(
    ("verb", "past"),
    [
        ("blim", "blimmed"),
        ("croank", "croanked"),
        ("teesmile", "teesmiled"),
        ("thudy", "thudied"),
        ("shing", "shang"),
        ("grapeep", "grapept"),
        ("frow", "frew"),
        ("glaix", "glaixed"),
    ],
)
def test_the_past_tense_follows_the_spelling(verb, past):
    assert past_tense(verb) == past


@pytest.mark.parametrize("skill", SKILLS)
def test_a_document_has_an_answer_that_none_of_its_wrong_choices_equals(skill):
    for document in islice(stream(skill, "train", Random(1)), 300):
        assert document.text == f"{document.prompt}{document.answer}\n"
        assert document.answer not in document.wrong
        assert len(set(document.wrong)) == len(document.wrong)


@pytest.mark.parametrize("skill", SKILLS)
def test_the_same_generator_gives_the_same_documents(skill):
    assert distinct(skill, "test", 50, Random(3)) == distinct(skill, "test", 50, Random(3))


def test_the_split_is_a_function_of_the_prompt_in_the_shares_it_says():
    prompts = [d.prompt for d in islice(stream("sort", "train", Random(0)), 100)]
    drawn = [split_of(f"sort {number}=") for number in range(16_000)]

    assert {split_of(prompt) for prompt in prompts} == {"train"}
    assert drawn.count("test") / 16_000 == pytest.approx(2 / 16, abs=0.01)
    assert drawn.count("valid") / 16_000 == pytest.approx(1 / 16, abs=0.01)
