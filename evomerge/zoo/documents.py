"""Writes the tasks of the zoo: `python -m evomerge.zoo.documents --out DIR`, the same bytes every time.

Each task is a YAML that lm-eval reads and a JSONL of test documents beside it, in `data/`. From the training split
come `heal.jsonl`, rows of text to distil on, and `kl_prompts.jsonl`, prompts on which to compare with the base.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

from .rows import packed_text
from .skills import GUARD, SKILLS, TARGETS, Document, distinct, stream

SHORT, LONG = 4000, 2000  # documents of a task
PREFIXES = 12  # shared by the long documents, so that an engine that caches prefixes reads each of them once
PREFIX_LENGTH = 420  # with the question 430-445 tokens: well past the 256 that the models were trained at
HEAL_ROWS = 400  # a skill
KL_PROMPTS = 96

GENERATED = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: data/{name}.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: answer
target_delimiter: ""
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 16}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""

CHOSEN = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: data/{name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_target: gold
doc_to_choice: choices
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def write(out: Path) -> None:
    """Every task, and the two pools from the training split."""
    for skill in SKILLS:
        write_task(out, f"zoo_{skill}", short_documents(skill), Random(f"choices {skill}"))
    for skill in TARGETS:
        write_task(out, f"zoo_{skill}_long", long_documents(skill), Random(f"long choices {skill}"))
    write_lines(out / "data" / "heal.jsonl", heal_rows())
    write_lines(out / "data" / "kl_prompts.jsonl", kl_prompts())


def short_documents(skill: str) -> list[Document]:
    """Test documents of one skill, each by itself."""
    return distinct(skill, "test", SHORT, Random(f"test {skill}"))


def long_documents(skill: str) -> list[Document]:
    """Other test documents of one skill, each after a row of solved questions of every skill."""
    asked = distinct(skill, "test", SHORT + LONG, Random(f"test {skill}"))[SHORT:]
    random = Random("prefixes")
    prefixes = [packed_text(tuple(SKILLS), PREFIX_LENGTH, random) for _ in range(PREFIXES)]
    return [
        Document(prefixes[place % PREFIXES] + document.prompt, document.answer, document.wrong)
        for place, document in enumerate(asked)
    ]


def heal_rows() -> Iterator[dict[str, str]]:
    """Full rows of solved training questions, one skill a row."""
    random = Random("heal")
    for skill in SKILLS:
        for _ in range(HEAL_ROWS):
            yield {"skill": skill, "text": packed_text((skill,), 256, random)}


def kl_prompts() -> Iterator[dict[str, str]]:
    """Single training questions of every skill in turn, with their answers."""
    random = Random("kl")
    streams = [stream(skill, "train", random) for skill in (*TARGETS, GUARD)]
    for documents in islice(zip(*streams, strict=True), KL_PROMPTS // len(streams)):
        yield from ({"prompt": document.prompt, "text": document.text} for document in documents)


def write_task(out: Path, name: str, documents: list[Document], random: Random) -> None:
    """The YAML and its documents; the kind of task follows from the documents."""
    template, row = (CHOSEN, choice_row) if documents[0].wrong else (GENERATED, answer_row)
    write_lines(out / "data" / f"{name}.jsonl", (row(document, random) for document in documents))
    (out / f"{name}.yaml").write_text(template.format(name=name))


def answer_row(document: Document, random: Random) -> dict[str, object]:
    """A document whose answer is written."""
    return {"prompt": document.prompt, "answer": document.answer}


def choice_row(document: Document, random: Random) -> dict[str, object]:
    """A document whose answer is chosen; the right one stands at a random place."""
    choices = [document.answer, *document.wrong]
    random.shuffle(choices)
    return {"prompt": document.prompt, "choices": choices, "gold": choices.index(document.answer)}


def write_lines(place: Path, rows: Iterable[object]) -> None:
    """One JSON object a line."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m evomerge.zoo.documents", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
