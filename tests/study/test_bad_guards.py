"""Guards that cannot do their work: one line each, before anything runs, in a search and outside of one."""

import json

import pytest
from safetensors.torch import load_file

from evomerge.candidate.checkpoint import Checkpoint
from evomerge.document import dump_yaml
from evomerge.errors import EvomergeError
from evomerge.guards.ledger import Ledger
from evomerge.scoring.scores import Row, Scores
from evomerge.study.search import search
from evomerge.study.verbs import guard
from tests.laboratory import change

FLIPS = {"tasks": {"kept": {"flips": 0.1}}}
SCORER = "def score(weights, config, task, documents): raise SystemExit('something was scored')\n"


@pytest.fixture
def unscored(laboratory):
    """A laboratory in which nothing may be scored."""
    text = (laboratory / "scorer.py").read_text()
    (laboratory / "scorer.py").write_text(text[: text.index("def score(")] + SCORER)
    return laboratory


def entered(laboratory, model, doc=0):
    """A ledger beside the base whose one release has the weights of `model`."""
    scores = Scores.of([Row("kept", doc, "no such document", 1.0)])
    Ledger("numbers").add("one", Checkpoint.open(laboratory / model).fingerprint, scores).write(laboratory / "base/ledger.jsonl")


def too_few(laboratory):
    change(laboratory, guard={"tasks": {"kept": 0.01}})
    return r"guard\.tasks\.kept: 120 sealed documents cannot decide a tolerance of 0\.01, 6,184 would"


def too_few_for_flips(laboratory):
    change(laboratory, guard={"tasks": {"kept": {"flips": 0.02}}})
    return r"guard\.tasks\.kept: 120 sealed documents cannot pass a budget of 0\.02 even if none flips, 149 would"


def contaminated(laboratory):
    change(laboratory, guard={"tasks": {"near twin": 0.1}})
    return r"guard\.tasks\.near twin: 400 of its 400 documents are in suite\.tasks\.near too"


def edited(laboratory):
    change(laboratory, guard=FLIPS)
    entered(laboratory, "base")
    path = laboratory / "base/ledger.jsonl"
    path.write_text(path.read_text().replace("1.0", "0.0"))
    return r"ledger\.jsonl, line 2: was edited after it was written"


def of_another_line(laboratory):
    change(laboratory, guard=FLIPS)
    entered(laboratory, "a")
    return r"no release of 'numbers' has the weights of .*base; give the ledger of this line"


def with_other_documents(laboratory):
    change(laboratory, guard=FLIPS)
    entered(laboratory, "base")
    return r"1 of the 1 documents of kept that the line was held to are not in the task; restore its task file"


def without_fisher(laboratory):
    change(laboratory, guard={"ewc": {"fisher": "fishers", "limits": {"a": 1.0}}})
    return r"guard\.ewc: no Fisher of a at .*a\.safetensors; estimate it with: evomerge fisher"


def of_another_model(laboratory):
    from evomerge.guards.ewc import write_fisher

    (laboratory / "fishers").mkdir()
    weights = load_file(laboratory / "a/model.safetensors")
    write_fisher(laboratory / "fishers/a.safetensors", weights, model=Checkpoint.open(laboratory / "b").fingerprint)
    change(laboratory, guard={"ewc": {"fisher": "fishers", "weights": {"a": 1.0}}})
    return r"a\.safetensors was estimated for another model"


def without_prompts(laboratory):
    change(laboratory, guard={"kl": 0.1})
    return r"guard: a bound on KL needs prompts; give `kl_prompts`"


def without_such_a_field(laboratory):
    change(laboratory, guard={"tasks": {"kept": {"loss": 0.1, "clusters": "passage"}}})
    return r"guard\.tasks\.kept\.clusters: no document has 'passage'"


FAULTS = [
    too_few,
    too_few_for_flips,
    contaminated,
    edited,
    of_another_line,
    with_other_documents,
    without_fisher,
    of_another_model,
    without_prompts,
    without_such_a_field,
]


def refused_in_one_line(run, message):
    with pytest.raises(EvomergeError, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_search_refuses_it_before_anything_is_scored_or_written(unscored, fault):
    message = fault(unscored)

    refused_in_one_line(lambda: search(unscored / "space.yaml", unscored / "study", workers=1), message)

    assert not (unscored / "study").exists()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_so_does_the_judgement_of_one_model(unscored, fault):
    message = fault(unscored)
    ledger = unscored / "base/ledger.jsonl"

    refused_in_one_line(
        lambda: guard(
            unscored / "a",
            unscored / "base",
            unscored / "space.yaml",
            ledger=ledger if ledger.exists() else None,
            out=unscored / "verdict.json",
        ),
        message,
    )

    assert not (unscored / "verdict.json").exists()


RULE = {"match": "*", "method": "task_arithmetic", "weight": {"rank": {"range": [0.0, 1.0]}}}
TASK = """\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: mine.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: answer
metric_list: [{metric: exact_match, aggregation: mean}]
"""


def test_a_metric_without_a_direction_is_refused_by_both(tmp_path):
    """lm-eval knows a direction for metrics of its own; a function of the task file's has none unless the file says it."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/score.py").write_text(
        "def right(doc, results):\n    return {'right': float(results[0] == doc['answer'])}\n"
    )
    task = TASK.replace("metric_list: [{metric: exact_match, aggregation: mean}]", "process_results: !function score.right")
    (tmp_path / "tasks/mine.yaml").write_text(
        task + "metric_list: [{metric: right, aggregation: mean, higher_is_better: null}]\n"
    )
    (tmp_path / "tasks/mine.jsonl").write_text("".join(json.dumps({"prompt": f"{i}", "answer": "b"}) + "\n" for i in range(2000)))
    (tmp_path / "tasks/other.yaml").write_text(
        task.replace("mine", "other") + "metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]\n"
    )
    (tmp_path / "tasks/other.jsonl").write_text("".join(json.dumps({"prompt": f"x{i}", "answer": "b"}) + "\n" for i in range(20)))
    space = {
        "recipe": {"base": "zoo:models/base", "sources": {"rank": "zoo:models/rank"}, "rules": [RULE]},
        "suite": {"include": "tasks", "tasks": {"other": 1.0}, "rungs": [2], "select": 2, "sealed": 2},
        "guard": {"tasks": {"mine": 0.05}},
    }
    (tmp_path / "space.yaml").write_text(dump_yaml(space))
    message = r"guard\.tasks\.mine: lm-eval does not say whether more of right is better; write higher_is_better in the task file"

    refused_in_one_line(lambda: search(tmp_path / "space.yaml", tmp_path / "study", workers=1), message)
    refused_in_one_line(lambda: guard("zoo:models/sort", "zoo:models/base", tmp_path / "space.yaml"), message)
