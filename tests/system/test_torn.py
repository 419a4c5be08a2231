"""A last line of the journal that is cut anywhere: it heals, no whole line is lost, and the search goes on."""

import json
import signal

import optuna
import pytest

from evomerge.study.journal import Journal
from tests.system.searches import arguments, dies_after, forked, remains, trials

MAXIMIZE = [optuna.study.StudyDirection.MAXIMIZE]


@pytest.fixture
def unfinished(laboratory, whole, tmp_path):
    """A study that was killed when the line of its third trial had been written and the fourth had not begun."""
    study = tmp_path / "study"
    killed = forked(arguments(laboratory, study), dies_after(study, 3))
    assert killed.returncode == -signal.SIGKILL
    assert len(trials(study)) == 3
    return study


def test_cut_at_every_byte_of_the_last_line_no_other_trial_is_lost(unfinished):
    journal = unfinished / "journal.log"
    data, before = journal.read_bytes(), trials(unfinished)
    last = data.rindex(b"\n", 0, -1) + 1

    assert len(data) - last > 500
    for cut in range(last, len(data) + 1):
        journal.write_bytes(data[:cut])
        kept = before if cut == len(data) else before[:-1]
        assert len(Journal(journal, MAXIMIZE).trials()) == len(kept), cut
        assert trials(unfinished) == kept, cut
        assert journal.read_bytes().startswith(data[:last]), cut


def test_cut_at_every_byte_of_its_first_line_a_journal_begins_anew(tmp_path):
    journal = tmp_path / "journal.log"
    Journal(journal, MAXIMIZE)
    data = journal.read_bytes()

    for cut in range(len(data) + 1):
        journal.write_bytes(data[:cut])
        assert Journal(journal, MAXIMIZE).trials() == [], cut
        assert [json.loads(line)["study_name"] for line in journal.read_text().splitlines()][:1] == [Journal.NAME], cut


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_search_with_a_torn_journal_ends_as_if_nothing_had_happened(laboratory, whole, unfinished, share):
    journal = unfinished / "journal.log"
    data = journal.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    journal.write_bytes(data[: last + int(share * (len(data) - last))])

    done = forked(arguments(laboratory, unfinished))

    assert done.returncode == 0, done.stderr
    assert remains(unfinished) == remains(whole.study)


def test_the_folder_of_a_trial_that_never_counted_is_gone_after_resuming(laboratory, whole, unfinished):
    third = sorted((unfinished / "trials").iterdir())[-1]
    (third.rename(third.with_name("0003-deadbeef")) / "x.part").touch()  # as another worker would have left it
    journal = unfinished / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))

    done = forked(arguments(laboratory, unfinished))

    assert done.returncode == 0, done.stderr
    assert remains(unfinished) == remains(whole.study)
