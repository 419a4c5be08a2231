"""The ledger of a line: nothing leaves it unseen, everything it ever passed counts, transfer as Avalanche computes it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import GuardError
from evomerge.guards.ledger import Ledger, hold, transfer, transfer_of
from evomerge.scoring.scores import Row, Scores


def scores(wrong, of=400, task="kept"):
    return Scores.of(Row(task, doc, f"h{doc}", float(doc not in wrong)) for doc in range(of))


@pytest.fixture
def line():
    return Ledger("llama").add("one", "a", scores(set())).add("two", "b", scores(set(range(10))))


def test_a_ledger_is_read_back_as_it_was_written(line, tmp_path):
    line.write(tmp_path / "ledger.jsonl")

    assert Ledger.read(tmp_path / "ledger.jsonl", "llama") == line
    assert [release.mean("kept") for release in line.releases] == [1.0, 390 / 400]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_edit_of_the_file_is_seen(line_text, tmp_path_factory, data):
    where = data.draw(st.integers(0, len(line_text) - 2))
    to = data.draw(st.sampled_from([c for c in "0a9 x" if c != line_text[where]]))
    path = tmp_path_factory.mktemp("edited") / "ledger.jsonl"
    path.write_text(line_text[:where] + to + line_text[where + 1 :])

    with pytest.raises(GuardError, match=r"line \d: was edited after it was written") as caught:
        Ledger.read(path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def line_text():
    return Ledger("llama").add("one", "a", scores(set(), of=3)).add("two", "b", scores({1}, of=3)).to_text()


def test_a_release_taken_out_or_moved_is_seen(line, tmp_path):
    path = tmp_path / "ledger.jsonl"
    first, second, third = line.to_text().splitlines()

    for lines in ([first, third], [first, third, second], [second, third]):
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(GuardError, match="was edited"):
            Ledger.read(path)
    path.write_text("")
    with pytest.raises(GuardError, match="is empty"):
        Ledger.read(path)


def test_a_line_forged_without_the_chain_is_seen(line, tmp_path):
    lines = line.to_text().splitlines()
    entry = json.loads(lines[1])
    entry["answers"]["kept"]["h0"] = 0.0
    (tmp_path / "ledger.jsonl").write_text("\n".join([lines[0], json.dumps(entry), lines[2]]) + "\n")

    with pytest.raises(GuardError, match="line 2: was edited"):
        Ledger.read(tmp_path / "ledger.jsonl")


def test_the_ledger_of_another_line_is_refused(line, tmp_path):
    line.write(tmp_path / "ledger.jsonl")

    with pytest.raises(GuardError, match="is the ledger of 'llama', not of 'qwen'"):
        Ledger.read(tmp_path / "ledger.jsonl", "qwen")
    with pytest.raises(GuardError, match="has a release 'two' already"):
        line.add("two", "c", scores(set()))


def test_what_an_older_release_passed_counts_and_not_only_the_last(line):
    third = scores(set(range(10, 20)))  # as good as release two, and wrong on what both of the others knew

    verdict = hold(line, third, {"kept": 0.02})["kept"]

    assert (verdict.negative_flips, verdict.positive_flips) == (10, 0)
    again = scores(set(range(10)))  # alike to the last release: nothing flipped since, ten documents lost since the first
    assert hold(line, again, {"kept": 0.1})["kept"].negative_flips == 10


def test_a_slow_slide_is_refused_by_the_line_where_each_step_passes():
    line = Ledger("llama").add("0", "0", scores(set()))
    for step in range(1, 5):
        line = line.add(str(step), str(step), scores(set(range(4 * step))))

    last = scores(set(range(20)))

    from_parent = Ledger("llama").add("4", "4", scores(set(range(16))))
    assert hold(from_parent, last, {"kept": 0.03})["kept"].outcome == "passed"
    assert hold(line, last, {"kept": 0.03})["kept"].outcome == "refused"


def test_documents_that_the_line_knows_must_be_answered(line):
    with pytest.raises(GuardError, match="no score of 300 of the 400 documents of kept"):
        hold(line, scores(set(), of=100), {"kept": 0.1})
    with pytest.raises(GuardError, match="knows nothing of new"):
        hold(line, scores(set(), task="new"), {"new": 0.1})
    assert hold(line, scores(set(), of=500), {"kept": 0.1})["kept"].n == 400


def test_transfer_on_an_example_worked_by_hand_as_avalanche_computes_it():
    """Accuracy after each experience, the untrained model first; the figures are those of its stream metrics.

    forgetting: A .9 - .7 = .2, B .8 - .75 = .05, mean .125; backward transfer is minus that. Forward: B .3 - .1, C .25 - .05
    (A, learned first, has no release before it that could have helped). Against the best: A .95 - .7.
    """
    scores = {"A": [0.2, 0.9, 0.95, 0.7], "B": [0.1, 0.3, 0.8, 0.75], "C": [0.05, 0.15, 0.25, 0.85]}

    found = transfer(scores, {"A": 1, "B": 2, "C": 3})

    assert found.backward == pytest.approx(-0.125)
    assert found.forward == pytest.approx(0.2)
    assert found.forgetting == pytest.approx({"A": 0.2, "B": 0.05})
    assert found.worst == pytest.approx({"A": 0.25, "B": 0.05})


def test_a_line_of_one_release_has_nothing_to_tell():
    found = transfer({"A": [0.2, 0.9]}, {"A": 1})

    assert found.forgetting == {}
    assert found.backward != found.backward
    assert found.forward != found.forward


def test_the_transfer_of_a_ledger_is_that_of_its_releases():
    """One hundred documents a task; A came with the release that raised it most, B with the one that is named."""
    line = Ledger("llama")
    for name, a, b in (("0", 20, 10), ("1", 90, 30), ("2", 95, 60), ("3", 70, 75)):
        right = {"A": a, "B": b}
        rows = (Row(task, doc, f"{task}{doc}", float(doc < n)) for task, n in right.items() for doc in range(100))
        line = line.add(name, name, Scores.of(rows))

    found = transfer_of(line, {"B": "2"})

    assert found == transfer({"A": [0.2, 0.9, 0.95, 0.7], "B": [0.1, 0.3, 0.6, 0.75]}, {"A": 1, "B": 2})
    with pytest.raises(GuardError, match=r"B cannot have come with '9' [(]its tasks: A, B; its releases: 0, 1, 2, 3[)]"):
        transfer_of(line, {"B": "9"})
    assert transfer_of(Ledger("new")).forgetting == {}
