"""What is said of a study while it runs, when it was stopped, and when it ended."""

import pytest

from evomerge.errors import StudyError
from evomerge.report.status import holder, status
from evomerge.study.search import search
from evomerge.study.watch import Nobody
from tests.studies import stopped


class Look(Nobody):
    """Looks at the study when its sealed documents are opened."""

    def __init__(self, directory):
        self.directory, self.seen = directory, ""

    def phase(self, name, total):
        if name == "sealed":
            self.seen = status(self.directory)


def told(text):
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines()}


def test_a_running_study_names_its_process_and_its_phase_and_a_finished_one_its_verdict(laboratory):
    directory = laboratory / "study"
    look = Look(directory)
    search(laboratory / "space.yaml", directory, workers=1, watch=look)
    running, finished = told(look.seen), told(status(directory))

    assert running["state"].startswith("running, process ")
    assert running["state"].endswith(": select")
    assert finished["state"] == "better and certified (exit 0)"
    assert finished["trials"].startswith("12 of 12: ")
    assert finished["best"].startswith("00")
    assert holder(directory) is None


def test_a_stopped_study_says_where_it_stood_and_how_it_goes_on(laboratory):
    said = told(status(stopped(laboratory, at="trials")))

    assert said["state"] == "stopped during baselines; the same `evomerge search` with --resume goes on"
    assert said["trials"] == "0 of 12"
    assert said["best"] == "none yet"


def test_a_folder_without_a_study_has_no_status(tmp_path):
    with pytest.raises(StudyError, match="is not the folder of a study"):
        status(tmp_path)
