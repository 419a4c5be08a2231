"""What a person sees of a study: the same figures in the terminal, in Markdown, on a page, and for a machine."""

import json
import re

import pytest
import torch

from evomerge.errors import GuardError, StudyError
from evomerge.report.outlook import outlook
from evomerge.report.tables import align, comparison_table, markdown, scores_table
from evomerge.report.write import write_report
from evomerge.scoring.scores import Row, Scores
from evomerge.study.search import search
from tests.laboratory import change
from tests.studies import stopped


@pytest.fixture
def finished(laboratory):
    search(laboratory / "space.yaml", laboratory / "study", workers=1)
    return laboratory / "study"


def scored(task, values):
    return Scores(tuple(Row(task, i, f"h{i}", float(value)) for i, value in enumerate(values)))


def test_a_finished_study_is_told_alike_everywhere(finished):
    shown = write_report(finished)
    page, text = (finished / "report.html").read_text(), (finished / "report.md").read_text()
    data, certificate = (
        json.loads((finished / "report.json").read_text()),
        json.loads((finished / "certificate.json").read_text()),
    )

    winner = certificate["winner"]["name"]
    value = f"{100 * certificate['winner']['sealed']['value']:.1f}"
    for medium in (shown, page, text):
        assert "better and certified" in medium
        assert winner in medium
        assert value in medium
        assert all(name in medium for name in ("base", "a", "b"))
    assert data["certificate"] == certificate
    assert len(data["trials"]) == 12
    assert f"model:   {finished / 'best' / 'model'}" in shown


def test_the_report_says_where_the_time_of_the_trials_went(finished):
    write_report(finished)
    text, trials = (finished / "report.md").read_text(), json.loads((finished / "report.json").read_text())["trials"]
    head, *lines = (
        line.strip("| ").split(" | ") for line in text.split("## Where the time went\n\n")[1].split("\n\n")[0].split("\n")
    )

    assert head == ["seconds", "swap", "engine", "tasks", "waiting", "in all"]
    for part, shown in zip(("swap", "engine", "score", "wait"), lines[1][1:], strict=False):
        assert float(shown) == pytest.approx(sum(trial["seconds"].get(part, 0.0) for trial in trials), abs=0.0051)
    assert all(trial["seconds"]["swap"] > 0 and trial["seconds"]["engine"] > 0 for trial in trials)
    assert all(trial["seconds"]["wait"] > 0 for trial in trials)


def test_the_page_stands_alone(finished):
    write_report(finished)
    page = (finished / "report.html").read_text()

    assert page.count("<svg") == 4  # the search, what was traded, what the guards cost, the winner over depth
    assert not re.search(r"<script|<link|src=|@import", page)
    assert "rules:" in page  # the winner's recipe


def test_the_same_study_gives_the_same_page(finished):
    write_report(finished)
    before = (finished / "report.html").read_bytes()
    write_report(finished)

    assert (finished / "report.html").read_bytes() == before


def test_an_unfinished_study_has_a_report_too(laboratory):
    stopped(laboratory, at="select")

    assert "not finished: 12 trials so far" in write_report(laboratory / "study")


def test_trials_of_a_search_that_grows_are_shown_apart_and_the_best_is_of_the_highest_rung(laboratory):
    from evomerge.report.figures import _best_so_far, _kinds
    from evomerge.report.view import View

    search(change(laboratory, search={"sampler": "random", "eta": 1, "grow": 5, "trials": 8}), laboratory / "grown", workers=1)
    trials = View.of(laboratory / "grown").trials
    kinds = {label: len(there) for label, _, _, there in _kinds(trials)}
    best = dict(_best_so_far(trials))
    low, high = ([trial.value for trial in trials if trial.notes["rung"] == rung and trial.feasible] for rung in (0, 1))

    assert max(low) > max(high)  # few documents flatter
    assert sum(kinds[label] for label in kinds if label.startswith("ended on a lower rung")) == 5
    assert sum(kinds[label] for label in kinds if label.startswith("reached the top")) == 3
    assert best[max(best)] == max(high)
    assert not any("lower" in label for label, *_ in _kinds(trials[5:]))


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match="is not the folder of a study"):
        write_report(tmp_path)


def test_the_outlook_counts_documents_and_says_what_the_guard_can_decide(laboratory):
    said = outlook(laboratory / "space.yaml")

    assert "4 parameters, 12 trials by cmaes" in said
    assert re.search(r"^\d+ workers?, on the CPU \(\d+ cores\)$", said, re.MULTILINE) or torch.cuda.is_available()
    assert re.search(r"^near +target +10 +30 +20 +100$", said, re.MULTILINE)
    assert re.search(r"^kept +guard +10 +30 +40 +120$", said, re.MULTILINE)
    assert "guard kept: a loss of 0.1 or more is refused; 120 sealed documents, 62 decide it" in said
    assert not (laboratory / "study").exists()


def test_the_outlook_refuses_a_guard_that_cannot_decide(laboratory):
    with pytest.raises(GuardError, match=r"120 sealed documents cannot decide a tolerance of 0\.02"):
        outlook(change(laboratory, guard={"tasks": {"kept": 0.02}}))


def test_scores_are_shown_with_their_standard_error():
    # mean 3/4; sample variance 0.25; standard error sqrt(0.25 / 4) = 0.25
    assert scores_table(scored("near", [1, 1, 0, 1])).splitlines()[1].split() == ["near", "0.7500", "0.2500", "4"]


def test_a_comparison_uses_the_documents_that_both_were_scored_on():
    a, b = scored("near", [1] * 30 + [0] * 10), scored("near", [0] * 20 + [1] * 10)
    row = comparison_table(a, b).splitlines()[1].split()

    assert row[:4] == ["near", "1.0000", "0.3333", "+0.6667"]
    assert row[-4:] == ["0", "20", "1.91e-06", "30"]  # 2 · 2^-20


def test_columns_line_up():
    assert align([["a", "1"], ["bcd", "10"]]) == ["a     1", "bcd  10"]
    assert markdown([["a", "1"], ["b", "2"]]) == ["| a | 1 |", "| :-- | --: |", "| b | 2 |"]


def test_trials_stand_in_the_order_of_their_numbers_beyond_four_digits_too(tmp_path):
    from evomerge.report.view import View

    (tmp_path / "study.json").write_text("{}")
    for name in ("10000-b", "9999-a", "0007-c"):
        (tmp_path / "trials" / name).mkdir(parents=True)
        (tmp_path / "trials" / name / "verdict.json").write_text("{}")

    assert [trial.name for trial in View.of(tmp_path).trials] == ["0007-c", "9999-a", "10000-b"]
