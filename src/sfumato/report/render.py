"""The pages of a run: dataset card and report for everyone, the internal page for the curator.

Each page is one file that asks for nothing else, readable by eye on a phone or a desk, by day, by night and on paper,
and by a screen reader. Card and report are given public facts only (`facts.ReleaseFacts`).
"""

from __future__ import annotations

import base64
import functools
import json
import re
from pathlib import Path

import jinja2
from markupsafe import Markup

from sfumato._files import write_atomic
from sfumato.report.charts import line, tables
from sfumato.report.evaluation import NOTICE
from sfumato.report.facts import METHODS, ReleaseFacts, RunFacts, shown

__all__ = ["METHODS", "ReleaseFacts", "render_card", "render_internal", "render_report", "shown", "write_internal"]

INTERNAL = "internal.html"


def render_card(facts: ReleaseFacts) -> str:
    """The dataset card `README.md`: a YAML header for dataset hubs, then Markdown."""
    return _templates().get_template("card.md.j2").render(facts=facts, size_category=_size_category(facts.total))


def render_report(facts: ReleaseFacts, sheet: bytes, shows: str) -> str:
    """The report `report.html`, which may be published.

    Args:
        facts: what to show.
        sheet: contact sheet as PNG.
        shows: what the sheet shows, in words.
    """
    record = json.dumps(facts.statement, indent=2, ensure_ascii=False)
    return _templates().get_template("report.html.j2").render(facts=facts, sheet=sheet, shows=shows, record=record)


def render_internal(facts: RunFacts) -> str:
    """The internal page: everything that is exact, beside its reference, below a red header."""
    page = _templates().get_template("internal.html.j2")
    return page.render(facts=facts.release, inside=facts.inside, notice=NOTICE)


def write_internal(folder: Path, release: Path) -> Path:
    """Writes `internal.html` into a run folder from what lies there and in the release; returns its path.

    Whoever adds to the folder (a release, an evaluation, an audit) calls it again.

    Raises:
        UserError: `release` is not a release.
    """
    page = folder / INTERNAL
    write_atomic(page, render_internal(RunFacts.gather(release, folder)).encode(), mode=0o600)
    return page


def _size_category(total: int) -> Markup:
    """The hub's word for a number of images; goes into YAML, not HTML, so its `<` stays."""
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return Markup(next((name for bound, name in bounds if total < bound), "1M<n<10M"))


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    environment.filters["figure"] = lambda value: f"{value:.4g}"
    environment.filters["share"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["picture"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    environment.filters["line"] = line
    environment.filters["tables"] = tables
    return environment


def _plain(text: str) -> Markup:
    """Text as Markdown that shows exactly this text: one line, nothing in it acts as markup."""
    return Markup(re.sub(r"([\\`*_{}\[\]<>|~#&$])", r"\\\1", " ".join(text.split())))
