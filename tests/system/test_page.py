"""report.html as a browser shows it: whole, silent, alone, and readable on a telephone and on a large screen."""

import json
import os
from pathlib import Path

import pytest

from tests.system.browser import MISSING, Browser

if MISSING:
    pytest.skip(f"no {' and '.join(MISSING)}: apt-get install chromium chromium-driver", allow_module_level=True)

SHOWN = """
const box = (element) => element.getBoundingClientRect();
return [...document.querySelectorAll(arguments[0])].map((element) => ({
  text: element.textContent.trim().replace(/\\s+/g, " "), visible: element.checkVisibility() && box(element).height > 0,
  left: box(element).left, right: box(element).right, height: box(element).height,
}));
"""
SECTIONS = """
return Object.fromEntries([...document.querySelectorAll("section")].map((section) => [
  section.querySelector("h2").textContent,
  {drawn: section.querySelectorAll("svg path").length, said: [...section.querySelectorAll("svg text")].map((t) => t.textContent)},
]));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(params=[400, 1400])
def page(request, browser, whole):
    browser.console(), browser.requested()  # what the one before left
    browser.open(whole.study / "report.html", request.param)
    if folder := os.environ.get("PICTURES"):
        browser.picture(Path(folder) / f"report-{request.param}.png")
    return browser


def test_it_asks_for_nothing_but_itself_and_complains_of_nothing(page, whole):
    assert page.console() == []
    assert page.requested() == [(whole.study / "report.html").as_uri()]
    assert page.ask("return document.scripts.length") == 0


def test_verdict_table_and_pictures_are_there_to_be_seen(page, whole):
    certificate = json.loads((whole.study / "certificate.json").read_text())
    winner = certificate["winner"]

    assert [(shown["text"], shown["visible"]) for shown in page.ask(SHOWN, ".verdict")] == [
        ("better and certified (exit 0)", True)
    ]
    (row,) = page.ask(SHOWN, "section:first-of-type tr.winner")
    assert row["visible"]
    assert row["text"].startswith(f"winner {winner['name']}")
    assert f"{100 * winner['sealed']['value']:.1f}" in row["text"]
    rows = [shown["text"] for shown in page.ask(SHOWN, "section:first-of-type tbody td:first-child")]
    assert [name for name in certificate["sealed"] if name != "winner"] == rows[:-1]
    pictures = page.ask(SHOWN, "svg")
    assert len(pictures) >= 3
    assert all(picture["visible"] and picture["height"] > 80 for picture in pictures)


def test_the_pictures_show_the_search_and_the_curves_over_depth(page):
    sections = page.ask(SECTIONS)

    search, depth = sections["The search"], sections["The winner over the depth of the model"]
    assert {"trial", "reached the top", "best so far, guards kept", "best baseline: average"} <= set(search["said"])
    assert search["drawn"] > 12  # a mark a trial, and the axes
    assert {"*: task_arithmetic, weight", "depth", "a", "b"} <= set(depth["said"])


def test_nothing_sticks_out_and_letters_can_be_read(page):
    width = page.ask("return window.innerWidth")

    assert page.ask("return document.documentElement.scrollWidth") <= width
    assert page.ask("return document.body.scrollWidth") <= width
    for element in page.ask(SHOWN, "h1, h2, p, li, .verdict, .scroll"):
        assert element["left"] >= 0, element
        assert element["right"] <= width, element
    heights = {shown["text"]: shown["height"] for shown in page.ask(SHOWN, "p, li, td, th, svg text") if shown["visible"]}
    assert min(heights.values()) >= 8, heights
