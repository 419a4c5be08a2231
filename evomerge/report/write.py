"""report.html, report.md and report.json of a study, written beside its files; each stands alone."""

from __future__ import annotations

import html
import json
from pathlib import Path
from string import Template
from typing import Any

from evomerge.report.figures import depth_picture, frontier_picture, search_picture, traded_picture
from evomerge.report.frontier import frontier_table
from evomerge.report.importance import attribution_table, importance_table
from evomerge.report.shelf import shelf, shelf_picture, shelf_table, volumes
from evomerge.report.standing import Rows, comparisons, guards, headline, luck, standing
from evomerge.report.tables import align, markdown
from evomerge.report.timing import timing
from evomerge.report.view import View
from evomerge.study.anytime import FILE as ACCEPTED
from evomerge.study.record import room_in, write_atomically

PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def write_report(directory: str | Path) -> str:
    """Write the three reports of a study, finished or not; returns the table for the terminal."""
    view = View.of(Path(directory))
    with room_in(view.directory):
        write_atomically(view.directory / "report.html", page(view))
        write_atomically(view.directory / "report.md", "\n".join(text(view)) + "\n")
        write_atomically(view.directory / "report.json", json.dumps(data(view), indent=1, ensure_ascii=False) + "\n")
    return terminal(view)


def terminal(view: View) -> str:
    """What a person sees when a search ends."""
    parts = [align(rows) for rows in (standing(view), comparisons(view), guards(view)) if rows]
    verdict, *reasons = headline(view)
    lines = [line for part in parts for line in (*part, "")]
    model = [f"model:   {view.directory / 'best' / 'model'}"] if (view.directory / "best" / "model").exists() else []
    return "\n".join(
        [*lines, f"verdict: {verdict}", *(f"  {r}" for r in reasons), *model, f"report:  {view.directory / 'report.html'}"]
    )


def text(view: View) -> list[str]:
    """The report as Markdown."""
    verdict, *reasons = headline(view)
    lines = [f"# {view.directory.name}: {verdict}", "", *(f"- {reason}" for reason in reasons), ""]
    for title, rows in _tables(view):
        lines += [f"## {title}", "", *markdown(rows), ""]
    return [*lines, "## How it was made", "", *(f"- {fact}" for fact in facts(view))]


def page(view: View) -> str:
    """The report as one self-contained page: no script, no network."""
    verdict, *reasons = headline(view)
    tables = {title: _table(rows) for title, rows in _tables(view)}
    body = [f"<section><h2>{html.escape(title)}</h2>{table}</section>" for title, table in tables.items()]
    recipe = view.best
    pictures = [
        ("The search", "Each point is a trial; grey ones were stopped early, on few documents.", search_picture(view)),
        ("The shelf", "Trials that no other beats in every objective; the ring is the certified one.", shelf_picture(view)),
        ("What was traded", "The winner beside its parents, task by task.", traded_picture(view)),
        (
            "What the guards cost",
            "Trials that reached the top rung; the line is the best target score at each loss.",
            frontier_picture(view),
        ),
        ("The winner over the depth of the model", "", depth_picture(recipe) if recipe else ""),
    ]
    drawn = [
        f"<section><h2>{title}</h2><p>{caption}</p><div class=scroll>{svg}</div></section>"
        for title, caption, svg in pictures
        if svg
    ]
    return PAGE.substitute(
        title=html.escape(view.directory.resolve().name),
        verdict=html.escape(verdict),
        tone={0: "good", 3: "plain", 4: "bad", 5: "plain"}.get((view.certificate or {}).get("ending", -1), "plain"),
        reasons="".join(f"<li>{html.escape(reason)}</li>" for reason in reasons),
        body="\n".join(body[:1] + drawn + body[1:]),
        recipe=html.escape(recipe.to_yaml()) if recipe else "",
        facts="".join(f"<li>{html.escape(fact)}</li>" for fact in facts(view)),
    )


def data(view: View) -> dict[str, Any]:
    """The report for a machine: the certificate, and every trial in a line."""
    trials = [{"name": e.name, **{k: v for k, v in e.notes.items() if k != "arrivals"}} for e in view.trials]
    found: dict[str, Any] = {"verdict": view.verdict, "certificate": view.certificate, "seconds": view.seconds, "trials": trials}
    if len(view.experiment.search.objectives) > 1:
        found["shelf"], found["hypervolume"] = [trial.name for trial in shelf(view)], volumes(view)
    return found


def facts(view: View) -> list[str]:
    """What somebody needs to believe the figures, or to repeat them."""
    search, documents = view.experiment.search, sum(int(e.notes.get("documents", 0)) for e in (*view.baselines, *view.trials))
    states: dict[str, int] = {}
    for trial in view.trials:
        states[trial.notes["state"]] = states.get(trial.notes["state"], 0) + 1
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    certificate = view.certificate or {}
    accepted = json.loads(path.read_text()) if (path := view.directory / ACCEPTED).exists() else None
    found = [
        f"{len(view.trials)} trials by {search.sampler}, seed {search.seed}: {counts}",
        *([f"auto picked {view.picked}"] if view.picked else []),
        f"{documents:,} documents scored for trials and baselines in {view.seconds:.0f} s",
        "searching, choosing and certifying used documents of their own; sealed documents were scored once, at the end",
    ]
    if accepted:
        found.append(accepted["said"])
    if "optimism" in certificate:
        points = 100 * certificate["optimism"]
        found.append(f"the best finalist looked {points:.1f} points too good on the documents that chose it (bootstrap)")
    if "winner" in certificate:
        differing = len(certificate["winner"]["rows_that_differ_from_the_live_engine"])
        found.append(f"certified on best/model/ read back from disk; {differing} rows differ from the live candidate's")
    if "versions" in certificate:
        found.append(", ".join(f"{name} {version}" for name, version in certificate["versions"].items()))
    return found


def _tables(view: View) -> list[tuple[str, Rows]]:
    titled = [
        ("Where everybody stands", standing(view)),
        ("The shelf, on search documents", shelf_table(view)),
        ("The winner against parents and rivals, on sealed documents", comparisons(view)),
        ("Guards, on sealed documents", guards(view)),
        ("What the guards cost, on search documents", frontier_table(view)),
        ("How much was luck", luck(view)),
        ("Which source helps where, on search documents", attribution_table(view)),
        ("What mattered in the search", importance_table(view)),
        ("Where the time went", timing(view)),
    ]
    return [(title, rows) for title, rows in titled if rows]


def _table(rows: Rows) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    lines = "".join(
        f"<tr{' class=winner' if row[0].startswith('winner') else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows[1:]
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
