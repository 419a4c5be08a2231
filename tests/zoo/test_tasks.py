"""lm-eval reads the tasks as they are and finds the same answers right as the training does."""

import json

import pytest
import torch
import yaml
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge import zoo
from evomerge.zoo.measure import chooses, exact
from evomerge.zoo.skills import Document

DOCUMENTS = 40
TASKS = ("zoo_sort", "zoo_past", "zoo_rank", "zoo_sort_long")


@pytest.fixture(scope="module")
def base():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(zoo.model("base"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def samples(base, tmp_path_factory):
    lm = HFLM(pretrained=base, tokenizer=AutoTokenizer.from_pretrained(zoo.model("base")), batch_size=40, max_length=512)
    cache = str(tmp_path_factory.mktemp("datasets"))
    tasks = TaskManager(include_defaults=False).load([task(name, cache) for name in TASKS])
    return evaluator.evaluate(lm=lm, task_dict=tasks["tasks"], limit=DOCUMENTS, bootstrap_iters=0)["samples"]


def task(name: str, cache: str) -> dict:
    """The shipped YAML, with the path of its documents made absolute."""
    config = yaml.safe_load((zoo.TASKS / f"{name}.yaml").read_text())
    files = {split: str(zoo.TASKS / path) for split, path in config["dataset_kwargs"]["data_files"].items()}
    return config | {"dataset_kwargs": {"data_files": files, "cache_dir": cache}}


@pytest.mark.parametrize("name", ["zoo_sort", "zoo_past", "zoo_sort_long"])
def test_what_lm_eval_generates_matches_exactly_where_every_token_is_the_argmax(base, samples, name):
    documents = [Document(row["doc"]["prompt"], row["doc"]["answer"]) for row in samples[name]]

    assert [row["exact_match"] for row in samples[name]] == exact(base, documents).float().tolist()


def test_lm_eval_chooses_the_letter_that_the_model_finds_likeliest(base, samples):
    documents = [chosen(row["doc"]) for row in samples["zoo_rank"]]

    assert [row["acc"] for row in samples["zoo_rank"]] == chooses(base, documents).float().tolist()


def chosen(row: dict) -> Document:
    right = row["choices"][row["gold"]]
    return Document(row["prompt"], right, tuple(choice for choice in row["choices"] if choice != right))


def test_lm_eval_gives_the_model_the_prompt_as_it_stands_in_the_file(samples):
    first = json.loads((zoo.TASKS / "data" / "zoo_sort.jsonl").read_text().splitlines()[0])

    assert samples["zoo_sort"][0]["arguments"][0][0] == first["prompt"]
