"""Sealed documents are opened once, and it is written down before: a second look is refused, or forced and told."""

import json

import pytest

from evomerge.errors import StudyError
from evomerge.report.standing import headline
from evomerge.report.view import View
from evomerge.study.search import search
from tests.laboratory import change

SPY = """
from pathlib import Path
_score = score

def score(weights, config, task, documents):
    \"\"\"As above; notes which documents were asked for, and whether an opening was on disk by then.\"\"\"
    root = Path(__file__).parent
    with open(root / "asked.log", "a") as file:
        file.write(json.dumps([task, list(documents), (root / "study/openings.json").exists()]) + "\\n")
    return _score(weights, config, task, documents)
"""


def run(laboratory, out="study", **options):
    return search(laboratory / "space.yaml", laboratory / out, workers=1, **options)


def certificate(study):
    return json.loads((study / "certificate.json").read_text())


def test_an_opening_is_on_disk_before_the_first_sealed_document_is_scored(laboratory):
    scorer = laboratory / "scorer.py"
    scorer.write_text("import json\n" + scorer.read_text() + SPY)
    run(laboratory, trials=3)

    sealed = json.loads((laboratory / "study/splits.json").read_text())["sealed"]
    asked = [json.loads(line) for line in (laboratory / "asked.log").read_text().splitlines()]
    written = [noted for task, docs, noted in asked if set(docs) & set(sealed[task])]
    others = [noted for task, docs, noted in asked if not set(docs) & set(sealed[task])]
    (opening,) = json.loads((laboratory / "study/openings.json").read_text())
    assert len(written) >= 6
    assert all(written)
    assert not any(others)
    assert (opening["name"], opening["trials"]) == (certificate(laboratory / "study")["winner"]["name"], 3)
    assert certificate(laboratory / "study")["sealed_looks"] == 1
    assert certificate(laboratory / "study")["sealed_before"] == []


def test_more_trials_after_a_certificate_are_refused_at_once_and_told_where_they_are_forced(laboratory):
    study = laboratory / "study"
    ending = run(laboratory, trials=3)
    first = certificate(study)["winner"]["name"]
    files = {path: path.read_bytes() for path in study.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(StudyError, match=f"were opened for {first}, chosen from 3 trials; another choice .* add --reopen"):
        run(laboratory, trials=25, resume=True)

    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file() and path.name != "lock"} == files
    assert run(laboratory, trials=3, resume=True) == ending

    run(laboratory, trials=25, resume=True, reopen=True)

    told = certificate(study)
    assert told["winner"]["name"] != first
    assert told["sealed_looks"] == 2
    assert told["sealed_before"] == [f"opened before for {first}, chosen from 3 trials"]
    assert "look 2 at sealed documents, not the first:" in headline(View.of(study))


def test_another_search_beside_it_on_the_same_documents_is_refused_and_leaves_nothing(laboratory):
    run(laboratory, trials=3)
    change(laboratory, search={"seed": 1})
    with pytest.raises(StudyError, match=r"320 of 320 sealed documents were opened by .*/study for 0"):
        run(laboratory, "other", trials=3)

    assert not (laboratory / "other").exists()


def test_the_same_experiment_begun_anew_is_not_refused_and_is_told(laboratory):
    run(laboratory, trials=3)
    run(laboratory, "anew", trials=3)

    assert certificate(laboratory / "anew")["sealed_looks"] == 2
    (told,) = certificate(laboratory / "anew")["sealed_before"]
    assert told.startswith("320 of 320 sealed documents were opened by ")


def test_a_study_killed_after_its_opening_ends_with_the_model_that_it_was_for(laboratory):
    class Killed(Exception): ...

    class Watch:
        def phase(self, name, total): ...
        def scored(self, outcome, best): ...
        def note(self, text):
            if text.startswith("sealed: "):
                raise Killed

    with pytest.raises(Killed):
        run(laboratory, trials=5, watch=Watch())
    opened = json.loads((laboratory / "study/openings.json").read_text())
    run(laboratory, trials=5, resume=True)

    assert json.loads((laboratory / "study/openings.json").read_text()) == opened
    assert certificate(laboratory / "study")["sealed_looks"] == 1
    with pytest.raises(StudyError, match="add --reopen"):
        run(laboratory, trials=6, resume=True)
