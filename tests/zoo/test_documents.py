"""The shipped tasks are what the generators write, and no test document was trained on."""

import json
from collections import Counter

import pytest

from evomerge import zoo
from evomerge.zoo.documents import write
from evomerge.zoo.skills import GUARD, SKILLS, TARGETS, split_of

SHORT = [f"zoo_{skill}" for skill in SKILLS]
LONG = [f"zoo_{skill}_long" for skill in TARGETS]


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (zoo.TASKS / "data" / f"{name}.jsonl").read_text().splitlines()]


def test_each_skill_has_a_task_and_each_target_one_after_a_long_prefix():
    assert zoo.task_names() == sorted(SHORT + LONG)
    assert len(TARGETS) >= 3
    assert GUARD not in TARGETS


def test_both_kinds_of_scoring_are_among_the_targets():
    kinds = Counter("choices" in rows(f"zoo_{skill}")[0] for skill in TARGETS)

    assert kinds[False] >= 2
    assert kinds[True] >= 1


@pytest.mark.parametrize(("name", "count"), [(name, 4000) for name in SHORT] + [(name, 2000) for name in LONG])
def test_documents_are_distinct_and_as_many_as_promised(name, count):
    assert len({row["prompt"] for row in rows(name)}) == len(rows(name)) == count


@pytest.mark.parametrize("name", SHORT + LONG)
def test_every_question_asked_is_of_the_test_split(name):
    questions = [row["prompt"].split("\n")[-1] for row in rows(name)]

    assert {split_of(question) for question in questions} == {"test"}


@pytest.mark.parametrize("skill", TARGETS)
def test_what_is_asked_after_a_prefix_is_not_asked_without_one(skill):
    alone = {row["prompt"] for row in rows(f"zoo_{skill}")}

    assert alone.isdisjoint(row["prompt"].split("\n")[-1] for row in rows(f"zoo_{skill}_long"))


@pytest.mark.parametrize("name", LONG)
def test_a_long_prompt_goes_past_the_trained_length(name):
    lengths = [len(row["prompt"]) for row in rows(name)]

    assert min(lengths) > 400
    assert max(lengths) <= 445


def test_what_stands_before_a_long_question_and_what_is_distilled_on_is_of_the_training_split():
    prefixes = {row["prompt"].rpartition("\n")[0] for name in LONG for row in rows(name)}
    pools = [row["text"] for name in ("heal", "kl_prompts") for row in rows(name)]
    lines = {line for text in [*prefixes, *pools] for line in text.split("\n") if line}

    assert {split_of(line.partition("=")[0] + "=") for line in lines} == {"train"}


def test_the_shipped_tasks_are_written_again_byte_for_byte(tmp_path):
    write(tmp_path)

    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert written == sorted(path.relative_to(zoo.TASKS) for path in zoo.TASKS.rglob("*.*"))
    for path in written:
        assert (tmp_path / path).read_bytes() == (zoo.TASKS / path).read_bytes(), path
