"""The same search with guards and without: the variants are what they say, the tables are worked by hand."""

import json
from pathlib import Path

import pytest

from evomerge.document import dump_yaml
from evomerge.scoring.scores import Row, Scores
from evomerge.study.experiment import Experiment
from evomerge.zoo.foretelling import MEASURES, correlations, spearman, spread
from evomerge.zoo.keeping import Study
from evomerge.zoo.kept import tables, winner

SPACE = Path(__file__).parents[2] / "search_spaces/guards.yaml"


def test_both_variants_search_the_same_space_from_the_same_seed_over_the_same_family(tmp_path):
    study, found = Study(SPACE, tmp_path / "models", tmp_path, 3), {}
    for variant in ("guarded", "unguarded"):
        (tmp_path / "x.yaml").write_text(dump_yaml(study.experiment(variant, trials=7)))
        found[variant] = Experiment.read(tmp_path / "x.yaml")

    guarded, unguarded = found.values()
    assert guarded.data["recipe"] == unguarded.data["recipe"]
    assert guarded.suite == unguarded.suite == Experiment.read(SPACE).suite
    assert guarded.search == unguarded.search
    assert (guarded.search.seed, guarded.search.trials, guarded.search.budget) == (3, 7, None)
    assert guarded.guard == Experiment.read(SPACE).guard
    assert not unguarded.guard.tasks
    assert unguarded.space.build(unguarded.space.start()).base.model == str(tmp_path / "models/base")


def study(family, variant, right, loss, outcome="passed", offered=True, ending="better and certified"):
    """A finished study whose winner has so many of 400 documents right, and a verdict on it."""
    folder = family / f"{variant}-0"
    (folder / "sealed").mkdir(parents=True)
    (folder / "certificate.json").write_text(json.dumps({"verdict": ending}))
    (folder / "experiment.yaml").write_text("suite: {tasks: {zoo_sort: 1.0}}")
    for name, count in (("winner", right), ("base", 200)):
        Scores.of(Row("zoo_sort", doc, f"h{doc}", float(doc < count)) for doc in range(400)).write(
            folder / f"sealed/{name}.jsonl"
        )
    if offered:
        (folder / "best/model").mkdir(parents=True)
        guard = {"loss": loss, "low": loss - 0.01, "high": loss + 0.01, "tolerance": 0.04, "outcome": outcome}
        (family / f"{variant}-0-verdict.json").write_text(json.dumps({"guards": {"zoo_past": guard}}))


def test_the_table_counts_who_loses_and_what_keeping_cost(tmp_path):
    for seed, free in ((2, 300), (3, 280)):
        study(tmp_path / f"seed-{seed}", "guarded", 280, 0.01)
        study(tmp_path / f"seed-{seed}", "unguarded", free, 0.12, "refused")

    lines = tables(tmp_path, [2, 3], [0])

    assert lines[2].startswith(
        "| 2 | 0 | better and certified | +1.0 (+0.0 to +2.0) | passed | better and certified | +12.0 (+11.0 to +13.0)"
    )
    assert "| 70.0 | 75.0 | +5.0 [" in lines[2]
    assert "guarded: 0 of 2 winners lose more than is allowed, 0 beyond doubt; 0 studies without one" in lines
    assert "unguarded: 2 of 2 winners lose more than is allowed, 2 beyond doubt; 0 studies without one" in lines
    # 5 and 0 points: mean 2.5, standard error 2.5, t(1) = 12.706
    assert lines[-1] == "given up for it: +2.5 [-29.3, +34.3] points of mean skill over 2 families"


def test_a_loss_beyond_the_tolerance_that_is_not_proven_is_told_apart(tmp_path):
    study(tmp_path, "unguarded", 300, 0.05, "undecided")

    assert (winner(tmp_path / "unguarded-0").loses, winner(tmp_path / "unguarded-0").shown) == (True, False)


def test_who_is_refused_a_model_keeps_the_base(tmp_path):
    study(tmp_path / "seed-2", "guarded", 280, 0.1, offered=False, ending="refused by a guard")
    study(tmp_path / "seed-2", "unguarded", 300, 0.12, "refused")

    lines = tables(tmp_path, [2], [0])

    assert "| refused by a guard | - | no winner |" in lines[2]
    assert "| 50.0 | 75.0 | +25.0 [" in lines[2]
    assert "guarded: 0 of 1 winners lose more than is allowed, 0 beyond doubt; 1 studies without one" in lines


def test_where_neither_search_offers_a_model_nothing_is_given_up(tmp_path):
    for variant in ("guarded", "unguarded"):
        study(tmp_path / "seed-2", variant, 0, 0.0, offered=False, ending="keep your parent")

    lines = tables(tmp_path, [2], [0])

    assert lines[2].endswith("| keep your parent | - | no winner | keep your parent | - | no winner | - | - | +0.0 |")
    assert lines[-1] == "given up for it: +0.0 points of mean skill over 1 families"


def candidates(losses, **measures):
    rows = [{"trial": str(i), "loss": loss, **dict.fromkeys(MEASURES, 1.0)} for i, loss in enumerate(losses)]
    return [{**row, **{name: values[i] for name, values in measures.items()}} for i, row in enumerate(rows)]


def test_rank_correlations_are_spearmans_with_ties_as_scipy_has_them():
    from scipy.stats import spearmanr

    losses, ewc = [0.0, 0.01, 0.01, 0.05, 0.2], [0.1, 0.3, 0.2, 0.2, 0.9]

    found = dict(zip(MEASURES, spearman(candidates(losses, ewc=ewc)), strict=True))

    assert found["ewc"] == pytest.approx(spearmanr(losses, ewc).statistic)
    assert found["kl"] != found["kl"]  # all alike: nothing to rank by


def test_correlations_are_told_over_all_and_over_those_that_lose_little(tmp_path):
    (tmp_path / "seed-0").mkdir()
    rows = candidates([0.0, 0.02, 0.04, 0.3, 0.5], kl=[3.0, 2.0, 1.0, 4.0, 5.0])
    (tmp_path / "seed-0/foretold-1.json").write_text(json.dumps(rows))

    line = correlations([tmp_path / "seed-0/foretold-1.json"])[4]

    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["seed-0 1", "5"]
    assert cells[2 + MEASURES.index("kl")] == "0.60"
    assert cells[2 + len(MEASURES)] == "3"
    assert cells[3 + len(MEASURES) + MEASURES.index("kl")] == "-1.00"


def test_candidates_are_spread_over_the_whole_search():
    assert spread(list(range(9)), 3) == [0, 4, 8]
    assert spread(list(range(3)), 5) == [0, 1, 2]
