"""An earlier study as the start of a new one."""

import json

import pytest

from evomerge.document import Place
from evomerge.errors import StudyError
from evomerge.report.status import status
from evomerge.space import Space
from evomerge.study.search import search
from evomerge.study.warmstart import translate
from tests.laboratory import change
from tests.studies import Interrupt, parameters

LUCKY = 0  # a seed whose first trials look better than its last


def space(weight, **more):
    rules = [{"match": "*", "method": "task_arithmetic", "weight": {"a": weight}, **more}]
    return Space.from_data({"base": "m", "sources": {"a": "m"}, "rules": rules}, Place("space"))


WEIGHT = "rules[0].weight.a"


@pytest.mark.parametrize(
    ("before", "points", "after"),
    [
        ({WEIGHT: 0.4}, 1, [0.4]),
        ({WEIGHT: 0.4}, 3, [0.4, 0.4, 0.4]),
        ({f"{WEIGHT}@0": 0.2, f"{WEIGHT}@1": 0.6}, 3, [0.2, 0.4, 0.6]),
        ({f"{WEIGHT}@0": 0.2, f"{WEIGHT}@1": 0.6}, 1, [0.4]),
        ({f"layers {WEIGHT}@{i}": i / 10 for i in range(5)}, 2, [0.0, 0.4]),
        ({f"{WEIGHT}@0": -1.0, f"{WEIGHT}@1": 7.0}, 2, [0.0, 1.0]),
        ({"elsewhere": 0.4}, 2, []),
    ],
)
def test_a_curve_is_read_off_at_the_new_points_and_drawn_into_the_range(before, points, after):
    found = translate(before, space({"range": [0.0, 1.0], "points": points}))

    assert list(found.values()) == pytest.approx(after)


def best(study):
    noted = json.loads((study / "warm_start.json").read_text())
    return noted["starts"]


def test_a_study_begins_with_the_best_recipe_of_another(laboratory):
    search(laboratory / "space.yaml", laboratory / "first", workers=1)
    other = change(laboratory, search={"seed": 3, "trials": 8})
    search(other, laboratory / "cold", workers=1, reopen=True)
    search(other, laboratory / "warm", workers=1, reopen=True, warm_start=[laboratory / "first"])

    start = best(laboratory / "warm")[0]
    assert start["start"] in parameters(laboratory / "first")
    proposed = parameters(laboratory / "warm")
    assert proposed[0] == parameters(laboratory / "cold")[0] or proposed[0] == pytest.approx(dict.fromkeys(proposed[0], 0.75))
    assert proposed[1] == pytest.approx(start["start"])


def test_a_start_and_the_status_come_from_the_highest_rung_whatever_fewer_documents_flatter(laboratory):
    study = laboratory / "first"
    search(change(laboratory, search={"sampler": "random", "seed": LUCKY, "eta": 1, "grow": 5, "trials": 8}), study, workers=1)
    verdicts = {path.parent.name: json.loads(path.read_text()) for path in (study / "trials").glob("*/verdict.json")}
    kept = {name: v["estimate"]["value"] for name, v in verdicts.items() if all(over <= 0 for over in v["constraints"].values())}
    low, high = ({name: value for name, value in kept.items() if verdicts[name]["rung"] == rung} for rung in (0, 1))
    top = max(high, key=high.__getitem__)

    assert max(low.values()) > max(high.values())  # or this test would tell nothing
    assert f"best    {top} " in status(study)
    search(change(laboratory, search={"trials": 2}), laboratory / "warm", workers=1, reopen=True, warm_start=[study])
    assert best(laboratory / "warm")[0]["trial"] == top


def test_of_several_studies_each_best_and_their_median_are_tried_first(laboratory):
    for seed in (0, 1, 2):
        search(change(laboratory, search={"seed": seed, "trials": 8}), laboratory / f"study-{seed}", workers=1, reopen=True)
    dirs = [laboratory / f"study-{seed}" for seed in (0, 1, 2)]
    search(change(laboratory, search={"seed": 9, "trials": 6}), laboratory / "warm", workers=1, reopen=True, warm_start=dirs)

    starts = [each["start"] for each in best(laboratory / "warm")]
    assert [each["trial"] for each in best(laboratory / "warm")][-1] == "median"
    assert len(starts) == 4
    for params, start in zip(parameters(laboratory / "warm")[1:5], starts, strict=True):
        assert params == pytest.approx(start)
    for name in starts[-1]:
        assert starts[-1][name] == sorted(start[name] for start in starts[:3])[1]


def test_a_resumed_study_needs_its_forerunner_no_more(laboratory):
    search(laboratory / "space.yaml", laboratory / "first", workers=1)
    other = change(laboratory, search={"seed": 3, "trials": 8})
    search(other, laboratory / "whole", workers=1, reopen=True, warm_start=[laboratory / "first"])
    with pytest.raises(KeyboardInterrupt):
        search(other, laboratory / "study", workers=1, reopen=True, warm_start=[laboratory / "first"], watch=Interrupt(1))
    (laboratory / "first").rename(laboratory / "gone")
    search(other, laboratory / "study", workers=1, reopen=True, resume=True)

    assert parameters(laboratory / "study") == parameters(laboratory / "whole")


def test_another_start_is_refused_and_so_is_a_study_with_nothing_to_give(laboratory):
    search(laboratory / "space.yaml", laboratory / "first", workers=1)
    other = change(laboratory, search={"seed": 3, "trials": 4})
    search(other, laboratory / "study", workers=1, reopen=True)

    with pytest.raises(StudyError, match="was begun without --warm-start"):
        search(other, laboratory / "study", workers=1, reopen=True, trials=5, resume=True, warm_start=[laboratory / "first"])
    with pytest.raises(StudyError, match="holds no study with trials"):
        search(other, laboratory / "third", workers=1, reopen=True, warm_start=[laboratory / "nowhere"])
