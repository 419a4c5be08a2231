"""The tables of a study: who stands where on which documents, what was traded, and what the verdict rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.report.view import View

Rows = list[list[str]]


def standing(view: View) -> Rows:
    """Parents, rivals and winner on sealed documents; where none were opened, parents and baselines on select."""
    certificate = view.certificate or {}
    split = "sealed" if "sealed" in certificate else "select"
    entries: Mapping[str, Any] = certificate.get(split, {})
    if not entries:
        return _so_far(view)
    tasks, guards = list(view.experiment.suite.tasks), list(view.experiment.guard.tasks)
    rows = [[f"on {split} documents", *tasks, "mean", certificate["aggregate"], *(f"guard {task}" for task in guards)]]
    ranked = sorted(entries, key=lambda name: (name == "winner", entries[name]["value"]))
    shown = ranked if split == "sealed" else ranked[-12:]
    for name in shown:
        means = entries[name]["tasks"]
        label = f"winner {certificate['winner']['name']}" if name == "winner" else name
        guarded = [_points(means[task]) if task in means else "" for task in guards]
        figures = [_points(entries[name]["mean_skill"]), _points(entries[name]["value"])]
        rows.append([label, *(_points(means[task]) for task in tasks), *figures, *guarded])
    return rows


def comparisons(view: View) -> Rows:
    """The winner against each parent and rival, with what Holm leaves of the p-values."""
    found: Mapping[str, Any] = (view.certificate or {}).get("comparisons", {})
    rows = [["winner against", "difference", "95 % interval", "Holm p", "lost", "won", "documents"]]
    for name, c in found.items():
        interval = f"[{_signed(c['low'])}, {_signed(c['high'])}]"
        counts = [str(c["negative_flips"]), str(c["positive_flips"]), str(c["n"])]
        rows.append([name, _signed(c["difference"]), interval, f"{c['p_holm']:.4f}", *counts])
    return rows if found else []


def guards(view: View) -> Rows:
    found: Mapping[str, Any] = (view.certificate or {}).get("guards", {})
    rows = [["guard", "outcome", "loss", "bounds", "tolerance", "flips lost / won", "documents"]]
    for task, v in found.items():
        bounds = f"[{_signed(v['low'])}, {_signed(v['high'])}]"
        flips = f"{v['negative_flips']} / {v['positive_flips']}"
        rows.append([task, v["outcome"], _signed(v["loss"]), bounds, _points(v["tolerance"]), flips, str(v["n"])])
    return rows if found else []


def luck(view: View) -> Rows:
    """How good the finalists looked on the documents that chose them, and on fresh ones."""
    found = (view.certificate or {}).get("finalists", [])
    rows = [["finalist", "naive (search)", "shrunk", "select (fresh)"]]
    rows += [[f["name"], _points(f["naive"]), _points(f["shrunk"]), _points(f["select"]["value"])] for f in found]
    return rows if found else []


def headline(view: View) -> list[str]:
    """The verdict and its reasons, a line each."""
    certificate = view.certificate
    if certificate is None:
        return [view.verdict]
    verdict = f"{view.verdict} (exit {certificate['ending']})"
    instead = [certificate["instead"]] if "instead" in certificate else []
    return [verdict, *certificate["reasons"], *instead, *_looks(certificate), *_repair(certificate.get("repair"))]


def _looks(certificate: Mapping[str, Any]) -> list[str]:
    """That the sealed documents were not unseen."""
    number = certificate.get("sealed_looks", 0)
    if number < 2:
        return []
    return [f"look {number} at sealed documents, not the first:", *certificate.get("sealed_before", [])]


def _repair(repair: Mapping[str, Any] | None) -> list[str]:
    """What came of mending a refused model."""
    if repair is None:
        return []
    if repair["share"] is None:
        return [f"repair: at none of {len(repair['tried'])} points on the way to {repair['towards']} did the guards hold"]
    look = "a second look at the sealed documents" if repair["second_look"] else "documents that nothing had seen"
    found = f"repair: {repair['share']:.0%} of the way to {repair['towards']}, in repaired/model"
    return [f"{found}: {repair['verdict']}, on {look}", *(f"repair: {reason}" for reason in repair["reasons"])]


def _so_far(view: View) -> Rows:
    """An unfinished study: the best estimates on search documents."""
    ended = [e for e in (*view.baselines, *view.trials) if e.value is not None]
    ranked = sorted(ended, key=lambda e: (e.notes["rung"], e.value or 0.0))
    rows = [["on search documents", "state", "rung", "estimate", "kept guards"]]
    return rows + [
        [e.name, e.notes["state"], str(e.notes["rung"]), _points(e.value), "yes" if e.feasible else "no"] for e in ranked[-12:]
    ]


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"
