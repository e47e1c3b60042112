from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sfumato.report.render import ReleaseFacts, croissant, render_card, render_report, shown

NASTY = '<script>alert("x")</script> | *a* [b](http://c) & \\ `d` \N{RIGHT DOUBLE QUOTATION MARK}'
SHEET = b"\x89PNG picture"
VOID = {"meta", "img", "link", "br", "hr", "input"}


def facts(**changes: Any) -> ReleaseFacts:
    statement = {
        "text": "One. Two. Not covered: A. B.",
        "sentences": ["One.", "Two.", "Not covered: A. B."],
        "not_covered": ["A.", "B."],
        "epsilon": 1.25,
        "delta": 1e-6,
        "release_id": "0123abcd",
        "unit": "person",
        "attacker": {"false_alarm": 0.05, "most_recognised": 0.13201},
    }
    parts: dict[str, Any] = {
        "title": "Coats",
        "method": "privimage",
        "statement": statement | changes.pop("statement", {}),
        "counts": {"coat": 1200, "bag": 0},
        "total": 1200,
        "shape": (3, 32, 48),
        "texts": False,
        "version": "9.8.7",
    }
    return ReleaseFacts(**(parts | changes))


class Page(HTMLParser):
    """Elements with their attributes, text by heading, and whether every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@given(st.floats(1e-300, 1e300))
def test_a_parameter_is_never_shown_smaller_than_it_is(value: float) -> None:
    text = shown(value)
    assert Decimal(text) >= Decimal(repr(value))
    assert float(text) <= value * (1 + 1.0001e-5)
    assert float(shown(float(text))) == float(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (10, "10"), (0.98765, "0.98765"), (0.12345678, "0.123457"), (1e-6, "1e-6"), (100_000.0, "100000")],
)
def test_parameters_look_as_people_write_them(value: float, text: str) -> None:
    assert shown(value) == text


def test_the_report_shows_statement_counts_and_picture() -> None:
    page = Page(render_report(facts(), SHEET, "the first images"))
    assert page.open == []
    found = dict(page.elements)
    assert found["html"]["lang"] == "en"
    assert found["img"]["src"] == "data:image/png;base64," + base64.b64encode(SHEET).decode()
    assert "the first images" in str(found["img"]["alt"])
    values = {attributes["id"]: attributes["value"] for tag, attributes in page.elements if tag == "data"}
    assert values == {"epsilon": "1.25", "delta": "1e-6"}
    for text in ("Coats", "One.", "Two.", "A.", "all images of one person", "13.3 %", "coat", "0123abcd", "PrivImage"):
        assert text in page.text
    assert page.text.count("Not covered:") == 2  # in the full statement, where it is twice; not among the sentences
    assert "48 \N{MULTIPLICATION SIGN} 32 pixels, colour" in page.text
    assert "1\N{NARROW NO-BREAK SPACE}200" in page.text


def test_the_report_asks_nobody_for_anything() -> None:
    html = render_report(facts(), SHEET, "x")
    policy = next(a["content"] for tag, a in Page(html).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?://|//|@import|url\(", re.sub(r'src="data:[^"]*"', "", html))
    assert not [tag for tag, _ in Page(html).elements if tag in ("script", "link", "iframe", "object")]


def test_the_report_is_for_the_dark_and_for_paper() -> None:
    html = render_report(facts(), SHEET, "x")
    assert "@media (prefers-color-scheme: dark)" in html
    assert "@media print" in html


def test_nothing_in_a_text_becomes_markup() -> None:
    nasty = facts(
        title=NASTY,
        method=NASTY,
        version=NASTY,
        counts={NASTY: 5},
        statement={"sentences": [NASTY], "not_covered": [NASTY], "release_id": NASTY},
    )
    page = Page(render_report(nasty, SHEET, NASTY))
    assert "script" not in [tag for tag, _ in page.elements]
    assert page.text.count(NASTY) >= 6
    header, body = render_card(nasty).split("---\n", 2)[1:]
    assert yaml.safe_load(header)["pretty_name"] == NASTY
    assert "<script>" not in body
    assert not re.search(r"(?<!\\)\[b\]", body)
    row = next(line for line in body.splitlines() if line.endswith(" 5 |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_a_statement_of_the_bare_minimum_is_enough() -> None:
    bare: Mapping[str, Any] = {"text": "Just this.", "epsilon": 2, "delta": 0, "release_id": "id"}
    some = ReleaseFacts("T", "a-method", bare, {}, 3, (1, 8, 8), True, "1")
    page = Page(render_report(some, SHEET, "x"))
    card = render_card(some)
    for text in (page.text, card):
        assert "Just this." in text
        assert "Synthetic images |" not in text
    assert "Protected" not in page.text
    assert "image-classification" not in card
    assert "`text`" in card
    assert "attacker" not in page.text


def test_the_card_lists_what_the_folder_holds() -> None:
    card = render_card(facts())
    assert "| coat | 1\N{NARROW NO-BREAK SPACE}200 |" in card
    assert "| bag | 0 |" in card
    assert "- A.\n- B.\n" in card
    assert "Not covered: A. B." not in card
    (config,) = yaml.safe_load(card.split("---\n")[1])["configs"]
    assert config["data_files"] == [{"split": "train", "path": ["metadata.jsonl", "images/**"]}]


@pytest.mark.parametrize(
    ("total", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (100_000, "100K<n<1M"), (10**6, "1M<n<10M")],
)
def test_size_categories_are_those_of_the_hub(total: int, category: str) -> None:
    assert yaml.safe_load(render_card(facts(total=total)).split("---\n")[1])["size_categories"] == [category]


@pytest.mark.parametrize(
    ("alarm", "power", "words"),
    [(0.05, 0.13201, ("5", "13.3")), (0.05, 0.132, ("5", "13.2")), (0.01, 0.99999, ("1", "100"))],
)
def test_the_attackers_power_is_rounded_up(alarm: float, power: float, words: tuple[str, str]) -> None:
    assert facts(statement={"attacker": {"false_alarm": alarm, "most_recognised": power}}).attacker == words


def test_croissant_has_a_field_for_each_column() -> None:
    def names(some: ReleaseFacts) -> list[str]:
        (records,) = croissant(some, "0" * 64)["recordSet"]
        return [field["name"] for field in records["field"]]

    assert names(facts()) == ["name", "image", "label"]
    assert names(facts(texts=True)) == ["name", "image", "label", "text"]
    assert names(facts(counts={})) == ["name", "image"]
    document = croissant(facts(), "ab" * 32)
    assert document["rai:hasSyntheticData"] is True
    assert document["distribution"][0]["sha256"] == "ab" * 32
    assert "datePublished" not in document


def test_public_classes_are_shown_where_there_was_a_query() -> None:
    rows = {"coat": [["shirt", 40], [NASTY, 3]], "bag": [["basket", 9]]}
    html = render_report(facts(statement={"released": {"public_classes": rows}}), SHEET, "nothing")
    Page(html)
    assert "Public images that came first" in html
    assert "basket" in html
    assert "<script>alert" not in html
    assert "Public images that came first" not in render_report(facts(), SHEET, "nothing")
    assert "Public images that came first" not in render_report(facts(statement={"released": {}}), SHEET, "nothing")
