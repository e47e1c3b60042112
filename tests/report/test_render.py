from __future__ import annotations

import base64
import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from tests.report.given import NASTY, SHEET, Page, facts
from tests.report.test_evaluation import facts as measured

from sfumato.report.evaluation import NOTICE
from sfumato.report.facts import PIECES, SEEN, Curve, InternalFacts, ReleaseFacts, RunFacts
from sfumato.report.render import render_card, render_internal, render_report

INSIDE = InternalFacts(
    dataset="coats-2026",
    intake={"images": 1234, "records": 77, "unreadable": 3, "unlisted": 5, "findings": {"torn": 8}, "also_in": ["old"]},
    evaluation=measured(),
    neighbours=b"\x89PNG pairs",
    audits={
        "Attacks": {
            "bounds": [
                {"name": "white box", "claim": 4, "lower_bound": 1.93127},
                {"name": "b", "claim": 4, "lower_bound": 0},
            ],
            "tests": ["clip", "noise"],
        }
    },
    losses=(Curve("pretraining", [(0.0, 2.5), (1.0, 1.5), (2.0, 0.75)]),),
    progress=(Curve("private training", [(1.0, 50.0), (4.0, 100.0)]),),
)


def report(some: ReleaseFacts | None = None) -> str:
    return render_report(some or facts(), SHEET, "the first images")


def internal(some: ReleaseFacts | None = None, **changes: Any) -> str:
    return render_internal(RunFacts(some or facts(), dataclasses.replace(INSIDE, **changes)))


def test_the_report_shows_statement_counts_and_picture() -> None:
    page = Page(report())
    assert page.open == []
    found = dict(page.elements)
    assert found["html"]["lang"] == "en"
    assert found["img"]["src"] == "data:image/png;base64," + base64.b64encode(SHEET).decode()
    assert "the first images" in str(found["img"]["alt"])
    values = {attributes["id"]: attributes["value"] for tag, attributes in page.elements if tag == "data"}
    assert values == {"epsilon": "1.25", "delta": "1e-6"}
    for text in ("Coats", "One.", "Two.", "A.", "all images of one person", "coat", "0123abcd", "PrivImage"):
        assert text in page.text
    shown, whole = page.text.split("Show it here")
    assert "Not covered:" not in shown  # it is a list of its own
    assert shown.count("From a shop.") == 1
    assert whole.count("Not covered:") == 2  # the statement itself is complete
    assert "48 \N{MULTIPLICATION SIGN} 32 pixels, colour" in page.text
    assert "1\N{NARROW NO-BREAK SPACE}200" in page.text


def test_the_pages_say_who_made_the_images_and_whose_word_the_labels_are() -> None:
    drawn, pieced = facts(), facts(statement={"released": {"detail": PIECES, "labels": SEEN}})
    for render in (lambda some: Page(report(some)).text, render_card):
        page, joined = (" ".join(render(some).split()) for some in (drawn, pieced))
        assert "drawn by a model" in page
        assert "Details are invented" in page
        assert "labels are those the images were asked to show" in page
        assert "put together from pieces of public images" in joined
        assert "Details are those of public images" in joined
        assert "takes the images for" in joined
        assert not any(text in joined for text in ("drawn by a model", "invented", "asked to show"))


def test_what_an_attacker_gains_is_said_in_words() -> None:
    text = " ".join(Page(report()).text.split())
    assert "the images of one given person belonged to the private images" in text
    assert "false alarm in 5 % of the cases" in text
    assert "with this release it is at most 13.3 %" in text
    assert "e^" not in text


def test_the_budget_is_a_picture_with_a_text_beside_it() -> None:
    for html in (report(), internal()):
        page = Page(html)
        label = next(a["aria-label"] for tag, a in page.elements if tag == "svg" and a.get("class") == "stack")
        assert label == "Shares of the budget: votes 6.2 %, means 12.5 %, tuning 81.2 %."
        stack = html[html.index('<svg class="stack"') :].split("</svg>")[0]
        bars = re.findall(r'x="([\d.]+)" width="([\d.]+)"', stack)
        assert [float(left) for left, _ in bars] == [0, 62.5, 187.5]
        assert [float(width) for _, width in bars] == [58.5, 121, 808.5]
        assert re.search(r"votes, noisy histogram\s*6\.2 %\s*11\.5\s*7\s*7", page.text)
        assert re.search(r"means, noisy sum\s*12\.5 %\s*6\s*2\s*0", page.text)
        assert re.search(r"tuning, private training\s*81\.2 %\s*1\.3\s*40\s*39", page.text)


@pytest.mark.parametrize("html", [report(), internal()], ids=["report", "internal"])
def test_no_page_asks_anybody_for_anything(html: str) -> None:
    page = Page(html)
    assert page.open == []
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?://|//|@import|url\(", re.sub(r'src="data:[^"]*"', "", html))
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "object")]
    assert "@media (prefers-color-scheme: dark)" in html
    assert "@media print" in html


@pytest.mark.parametrize("html", [report(), internal()], ids=["report", "internal"])
def test_a_screen_reader_finds_its_way(html: str) -> None:
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("h1", "main", "header", "footer")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(later - level <= 1 for level, later in itertools.pairwise(levels))
    names = {a["id"] for _, a in page.elements if "id" in a}
    assert {a["aria-labelledby"] for tag, a in page.elements if tag == "section"} <= names
    assert all(a.get("scope") in ("row", "col") for tag, a in page.elements if tag == "th")
    assert all(a.get("alt") for tag, a in page.elements if tag == "img")
    assert all(a.get("aria-hidden") or a.get("aria-label") for tag, a in page.elements if tag == "svg")


def test_nothing_in_a_text_becomes_markup() -> None:
    nasty = facts(
        title=NASTY,
        method=NASTY,
        version=NASTY,
        counts={NASTY: 5},
        statement={
            "sentences": [NASTY],
            "not_covered": [NASTY],
            "release_id": NASTY,
            "public_inputs": [f"{NASTY}."],
            "released": {"rounds": [{"candidates": 3, "noisy_votes": 9, "best": [NASTY]}]},
        },
    )
    page = Page(render_report(nasty, SHEET, NASTY))
    inner = Page(internal(nasty, dataset=NASTY, audits={NASTY: {NASTY: NASTY}}, losses=(Curve(NASTY, [(0.0, 1.0)]),)))
    for some in (page, inner):
        assert "script" not in [tag for tag, _ in some.elements]
        assert some.text.count(NASTY) >= 6
    header, body = render_card(nasty).split("---\n", 2)[1:]
    assert yaml.safe_load(header)["pretty_name"] == NASTY
    assert "<script>" not in body
    assert not re.search(r"(?<!\\)\[b\]", body)
    row = next(line for line in body.splitlines() if line.endswith(" 5 |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_a_statement_of_the_bare_minimum_is_enough() -> None:
    bare: Mapping[str, Any] = {"text": "Just this.", "epsilon": 2, "delta": 0, "release_id": "id"}
    some = ReleaseFacts("T", "a-method", bare, {}, 3, (1, 8, 8), True, "1")
    page, card = Page(render_report(some, SHEET, "x")), render_card(some)
    for text in (page.text, card):
        assert "Just this." in text
        assert "Synthetic images |" not in text
        assert "attacker" not in text
        assert "Public models" not in text
    assert "Protected" not in page.text
    assert "budget" not in page.text
    assert "image-classification" not in card
    assert "`text`" in card
    empty = Page(render_internal(RunFacts(some, InternalFacts())))
    assert empty.open == []
    assert "nobody has looked" in empty.text
    for word in ("Votes", "Intake", "Attack", "budget"):
        assert word not in empty.text


def test_the_card_lists_what_the_folder_holds() -> None:
    card = render_card(facts())
    assert "| coat | 1\N{NARROW NO-BREAK SPACE}200 |" in card
    assert "| bag | 0 |" in card
    assert "- A.\n- B.\n" in card
    assert "Not covered: A. B." not in card
    assert "- From a shop.\n" in card
    assert "at most 13.3 %" in card
    (config,) = yaml.safe_load(card.split("---\n")[1])["configs"]
    assert config["data_files"] == [{"split": "train", "path": ["metadata.jsonl", "images/**"]}]


@pytest.mark.parametrize(
    ("total", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (100_000, "100K<n<1M"), (10**6, "1M<n<10M")],
)
def test_size_categories_are_those_of_the_hub(total: int, category: str) -> None:
    assert yaml.safe_load(render_card(facts(total=total)).split("---\n")[1])["size_categories"] == [category]


def test_public_classes_are_shown_where_there_was_a_query() -> None:
    rows = {"coat": [["shirt", 40], [NASTY, 3]], "bag": [["basket", 9]]}
    html = report(facts(statement={"released": {"public_classes": rows}}))
    Page(html)
    assert "Public images that came first" in html
    assert "basket" in html
    assert "<script>alert" not in html
    assert "Public images that came first" not in report()
    assert "Public images that came first" not in report(facts(statement={"released": {}}))


def test_the_internal_page_warns_first_and_shows_every_figure_with_its_reference_and_count() -> None:
    html = internal()
    page = Page(html)
    body = page.text[page.text.index(NOTICE) :]
    assert body.index(NOTICE) < body.index("coats-2026") < body.index("What classifiers learn from it")
    assert re.search(r"\.alarm \{ background: var\(--alarm\)", html)
    measures = (
        *("321", "10", "10.06", "0.125", "0.1875", "25.0 %", "50.0 %", "0.75", "87.5 %", "96.9 %", "55.5 %", "71.2 %"),
        *("85.0 %", "400", "401", "777"),
    )
    inside = ("1\N{NARROW NO-BREAK SPACE}234", "77", "torn", "old", "1.931", "clip, noise", "from 2.5 to 0.75", "4.0")
    for figure in (*measures, *inside):
        assert figure in body, figure
    assert "<b>bag</b>" not in html  # class names are text
    assert "ResNet, WRN and ResNeXt" in body
    assert "no evidence of privacy" in body
    assert base64.b64encode(b"\x89PNG pairs").decode() in html
    assert "measures are of another release, 5eed" in body
    assert "another release" not in internal(facts(statement={"release_id": "5eed"}))


def test_without_classifiers_the_internal_page_says_why() -> None:
    given = measured() | {"classifiers": {"absent": "No labels here."}}
    assert "No labels here." in internal(evaluation=given)


def test_votes_are_shown_round_by_round() -> None:
    rounds = [{"candidates": 1500, "noisy_votes": votes, "best": [f"caption {votes}"]} for votes in (-3, 400, 800)]
    some = facts(statement={"released": {"rounds": rounds}})
    html = internal(some)
    body = Page(html).text
    assert "Round 2, 1\N{NARROW NO-BREAK SPACE}500 candidates" in body
    assert "400 votes" in body
    votes = html[html.index('<h2 id="votes">') : html.index("Best captions")]
    assert re.findall(r'class="c0" width="([\d.]+)"', votes) == ["0", "50.0", "100.0"]
    assert "caption 800" in body
    assert "caption 400" not in body
