"""Both pages in a real browser: on a phone and on a desk, by day and by night, for eyes, screen readers and printers.

Needs a network once, for the browser and for axe-core (pinned npm packages, kept beside the user's models), and brotli.
Screenshots are written to the folder `SFUMATO_SCREENSHOTS`, by default `dist/screenshots`; look at them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.browser.chromium import Browser, Tab, axe, running
from tests.report.given import facts
from tests.report.test_render import INSIDE

from sfumato._home import home
from sfumato.report.facts import ReleaseFacts, RunFacts
from sfumato.report.render import render_internal, render_report
from sfumato.report.sheet import contact_sheet, neighbours_sheet

CACHE = home() / "browser"  # before every test is given a home of its own
SCREENSHOTS = Path(os.environ.get("SFUMATO_SCREENSHOTS") or Path(__file__).parents[2] / "dist" / "screenshots")
PHONE, DESK = (390, 844), (1280, 900)
ROUNDS = [
    {"candidates": 200 * number, "noisy_votes": 830 + 37 * number, "best": ["a red coat"]} for number in (1, 2, 3)
]
LONG = "Donaudampfschifffahrtsgesellschaftskapitaenskajuetenschluessel"


def some(name: str) -> ReleaseFacts:
    """A release with everything on its pages, or one with too much on them."""
    statement = {"released": {"rounds": ROUNDS, "public_classes": {"coat": [["shirt", 4]], "bag": [["basket", 9]]}}}
    if name == "plain":
        return facts(statement=statement)
    return facts(
        title=f"{LONG} {LONG}",
        counts={f"{LONG}{number}": 10**number for number in range(9)},
        statement=statement
        | {"public_inputs": [f"A network (sha256 {'0123456789abcdef' * 4}, MIT)."], "release_id": LONG},
    )


def png(rows: int, columns: int) -> bytes:
    shades = np.linspace(0, 255, rows * columns * 64).astype(np.uint8).reshape(rows * columns, 1, 8, 8)
    buffer = io.BytesIO()
    if rows == 3:
        names = ("synthetic", "private", "holdout")
        sheet = neighbours_sheet(list(zip(names, np.split(shades, 3), strict=True)), 5)
    else:
        labels = np.repeat(np.arange(rows), columns)
        sheet = contact_sheet(shades, labels, rows=rows, columns=columns, scale=5, classes=[LONG] * rows)
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pages: NAME-report.html and NAME-internal.html."""
    folder = tmp_path_factory.mktemp("pages")
    inside = dataclasses.replace(INSIDE, neighbours=png(3, 12))
    for name in ("plain", "crowded"):
        shown = some(name)
        (folder / f"{name}-report.html").write_text(render_report(shown, png(10, 12), "the first images of each class"))
        (folder / f"{name}-internal.html").write_text(render_internal(RunFacts(shown, inside)))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running(CACHE) as started:
        yield started


@pytest.fixture(scope="module")
def checker() -> str:
    return axe(CACHE)


@pytest.fixture
def tab(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A tab of the browser; parametrised with (width, height), scheme and medium."""
    tab = Tab(browser, *getattr(request, "param", (DESK, "light", "screen")))
    yield tab
    tab.close()


def violations(tab: Tab, checker: str) -> list[str]:
    """What axe-core finds wrong, and where; contrast that it cannot tell counts as wrong."""
    tab.evaluate(checker)
    found = tab.evaluate("axe.run(document, {resultTypes: ['violations', 'incomplete', 'passes']})")
    assert len(found["passes"]) > 10
    return [
        f"{one['id']}: {node['html']}" for one in found["violations"] + found["incomplete"] for node in one["nodes"]
    ]


LOOKS = [(PHONE, "light", "screen"), (PHONE, "dark", "screen"), (DESK, "light", "screen"), (DESK, "dark", "screen")]
PAGES = ["plain-report", "plain-internal", "crowded-report", "crowded-internal"]


@pytest.mark.parametrize("tab", [*LOOKS, (DESK, "light", "print")], indirect=True, ids=str)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_and_nothing_leaves(
    name: str, tab: Tab, pages: Path, checker: str, request: pytest.FixtureRequest
) -> None:
    assert tab.open(pages / f"{name}.html") == []
    (width, _), scheme, medium = request.node.callspec.params["tab"]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(SCREENSHOTS / f"{name}-{width}-{medium if medium == 'print' else scheme}.png")
    assert violations(tab, checker) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    night = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 22, 26)"
    assert night == (scheme == "dark")


@pytest.mark.parametrize("name", ["plain-report", "plain-internal"])
def test_a_screen_reader_is_told_of_landmarks_pictures_and_tables(name: str, tab: Tab, pages: Path) -> None:
    tab.open(pages / f"{name}.html")
    found = tab.accessible()
    assert {"banner", "main", "contentinfo", "heading", "rowheader", "columnheader"} <= {role for role, _ in found}
    pictures = [told for role, told in found if role in ("image", "img")]
    assert "Shares of the budget: votes 6.2 %, means 12.5 %, tuning 81.2 %." in pictures
    assert all(pictures)
    regions = [told for role, told in found if role == "region"]
    assert len(set(regions)) == len(regions)


@pytest.mark.parametrize("name", ["plain-report", "plain-internal"])
def test_a_page_can_be_printed(name: str, tab: Tab, pages: Path, tmp_path: Path) -> None:
    tab.open(pages / f"{name}.html")
    tab.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")


def test_the_pages_policy_stops_what_a_forger_puts_in(tab: Tab, pages: Path, tmp_path: Path) -> None:
    forged = (pages / "plain-report.html").read_text()
    forged = forged.replace(
        "</main>", '<img src="http://forger.invalid/a.png"><script>document.title = "x"</script></main>'
    )
    (tmp_path / "forged.html").write_text(forged)
    assert tab.open(tmp_path / "forged.html") == []
    assert tab.evaluate("document.title") == "Coats"


def test_requests_and_faults_would_be_seen(tab: Tab, checker: str, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        '<html><body><main><h1>Bad</h1><img src="http://tracker.invalid/a.png"><p style="color: #ccc">Faint</p>'
        "<ul><li>1</li></ul><table><tr><th>x</th></tr></table><a href='#'>y</a><button>z</button></main></body></html>"
    )
    assert tab.open(tmp_path / "bad.html") == ["http://tracker.invalid/a.png"]
    told = json.dumps(violations(tab, checker))
    for fault in ("image-alt", "color-contrast", "html-has-lang", "document-title"):
        assert fault in told
