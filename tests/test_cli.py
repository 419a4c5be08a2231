"""The commands as a person runs them: exit codes, one line for bad input, nothing half-written."""

import json
import os
import subprocess
import sys

import pytest

from tests.laboratory import change


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "evomerge.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "COLUMNS": "200"})


def test_a_search_prints_its_table_and_ends_with_its_verdict(laboratory):
    command = ("search", laboratory / "space.yaml", "--out", laboratory / "study", "--workers", "1", "--resume")
    first, second = run(*command), run(*command)

    assert first.returncode == 0, first.stderr
    assert "verdict: better and certified (exit 0)" in first.stdout
    assert "parents: 3 to score" in first.stderr
    assert second.stdout == first.stdout
    assert second.returncode == 0


def test_progress_can_be_read_by_a_machine(laboratory):
    done = run(
        "search", laboratory / "space.yaml", "--out", laboratory / "study", "--workers", "1", "--trials", "2", "--log", "json"
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]

    assert {event["event"] for event in events} == {"phase", "scored", "note"}
    assert sum(event["event"] == "scored" and event["name"].startswith("000") for event in events) == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["search", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"),
        (["merge", "space.yaml", "--out", "x"], "space.yaml: recipe.rules[0].weight.a: "),
        (["merge", "recipe.yaml"], "merge: nowhere to write; add --out DIR, or --dry-run to see the plan"),
        (["merge", "recipe.yaml", "--out", "a"], "exists already"),
        (["compare", "a", "b"], "a: no scores here; give a scores.jsonl"),
        (["report", "a"], "a: is not the folder of a study"),
        (["status", "a"], "a: is not the folder of a study"),
        (["init", "new", "--base", "org/model"], "init: --base and --source NAME=MODEL go together"),
        (["guard", "a", "--against", "nowhere.jsonl", "--suite", "space.yaml"], "nowhere.jsonl: no scores here"),
        (["guard", "rows.jsonl", "--against", "rows.jsonl", "--suite", "unguarded.yaml"], "guard: guards no task"),
        (["eval", "nowhere", "--suite", "space.yaml"], "nowhere"),
        (["search", "space.yaml", "--budget", "soon"], "--budget: 'soon' is not a duration; write 8h, 90m, 1h30m or 45s"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(laboratory, command, message):
    (laboratory / "recipe.yaml").write_text(
        "{base: base, sources: {a: a}, rules: [{match: '*', method: linear, weight: {base: 1, a: 1}}]}"
    )
    unguarded = (laboratory / "space.yaml").read_text().replace("guard: {tasks: {kept: 0.1}, sealed: 120, discordance: 0.1}", "")
    (laboratory / "unguarded.yaml").write_text(unguarded)
    (laboratory / "rows.jsonl").write_text("")
    before = sorted(path.name for path in laboratory.iterdir())
    done = run(*command, cwd=laboratory)

    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in laboratory.iterdir() if path.name != "__pycache__") == before


def test_merge_eval_and_compare_work_on_one_recipe(laboratory):
    (laboratory / "recipe.yaml").write_text(
        "{base: base, sources: {a: a, b: b}, rules: [{match: '*', method: task_arithmetic, weight: {a: 0.5, b: 1.33}}]}"
    )
    plan = run("merge", "recipe.yaml", "--dry-run", cwd=laboratory)
    merged = run("merge", "recipe.yaml", "--out", "merged", cwd=laboratory)
    scored = [
        run("eval", model, "--suite", "space.yaml", "--out", f"{name}.jsonl", cwd=laboratory)
        for name, model in (("recipe", "recipe.yaml"), ("merged", "merged"), ("base", "base"))
    ]
    compared = run("compare", "merged.jsonl", "base.jsonl", cwd=laboratory)

    assert "task_arithmetic" in plan.stdout
    assert merged.stdout.strip() == f"written: {laboratory / 'merged'}"
    assert [done.returncode for done in scored] == [0, 0, 0], scored[0].stderr
    assert scored[0].stdout == scored[1].stdout
    assert compared.stdout.splitlines()[-1].startswith("mean of tasks")


def test_a_dry_run_writes_nothing(laboratory):
    before = sorted(path.name for path in laboratory.iterdir())
    done = run("search", "space.yaml", "--out", "study", "--dry-run", cwd=laboratory)

    assert done.returncode == 0, done.stderr
    assert "4 parameters" in done.stdout
    assert sorted(path.name for path in laboratory.iterdir() if path.name != "__pycache__") == before


def test_an_interrupted_search_writes_its_report_and_ends_with_130(laboratory):
    import signal
    import time

    space = change(laboratory, search={"trials": 100_000})
    command = [sys.executable, "-m", "evomerge.cli", "search", str(space), "--out", str(laboratory / "study"), "--workers", "1"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a test run in the background ignores it, and passes that on
    )
    deadline = time.monotonic() + 120
    while running.poll() is None and not list((laboratory / "study/trials").glob("0003*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    shown, said = running.communicate(timeout=60)

    assert running.returncode == 130, said
    assert "go on with: evomerge search" in said
    assert "not finished" in shown
    assert (laboratory / "study/report.html").exists()


@pytest.mark.parametrize("command", [["eval", "base"], ["guard", "a", "--against", "base"]])
def test_a_conversation_with_a_model_that_has_no_template_for_it_is_refused_before_anything_runs(laboratory, command):
    change(laboratory, scoring={"lm_eval": {"apply_chat_template": True}})
    refused = run(*command, "--suite", "space.yaml", cwd=laboratory)

    assert refused.returncode == 2
    assert "apply_chat_template" in refused.stderr
    assert "has no chat template; set it to false" in refused.stderr


def test_guard_judges_models_recipes_and_written_scores(laboratory):
    """The base is its own equal; a model whose guarded numbers moved far is refused, and what flipped is told."""
    (laboratory / "far.yaml").write_text(
        "{base: base, sources: {a: a}, rules: [{match: '*', method: task_arithmetic, weight: {a: 20.0}}]}"
    )
    refused = run(
        *("guard", "far.yaml", "--against", "base", "--suite", "space.yaml", "--explain", "--out", "verdict.json"), cwd=laboratory
    )
    run("eval", "base", "--suite", "space.yaml", "--split", "sealed", "--out", "base.jsonl", cwd=laboratory)
    alike = run("guard", "base.jsonl", "--against", "base", "--suite", "space.yaml", cwd=laboratory)

    assert refused.returncode == 4, refused.stderr
    verdict = json.loads((laboratory / "verdict.json").read_text())
    assert verdict["outcome"] == "refused"
    assert verdict["guards"]["kept"]["n"] == 120
    listed = [line for line in refused.stdout.splitlines() if line.startswith("kept ") and "  lost" in line]
    assert len(listed) == len(verdict["flips"]) == verdict["guards"]["kept"]["negative_flips"] > 0
    assert alike.returncode == 0, alike.stderr
    assert "verdict: passed (exit 0)" in alike.stdout
