"""Facts for the tests of all pages, and an eye for pages."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from sfumato.report.facts import ReleaseFacts

NASTY = '<script>alert("x")</script> | *a* [b](http://c) & \\ `d` \N{RIGHT DOUBLE QUOTATION MARK}'
SHEET = b"\x89PNG picture"
VOID = {"meta", "img", "link", "br", "hr", "input"}


def facts(**changes: Any) -> ReleaseFacts:
    """A release of two classes and two touches; `statement` changes fields of the statement."""
    statement = {
        "text": "One. In figures: x. Two. From a shop. Not covered: A. B.",
        "sentences": ["One.", "In figures: x.", "Two.", "From a shop.", "Not covered: A. B."],
        "not_covered": ["A.", "B."],
        "public_inputs": ["From a shop."],
        "epsilon": 1.25,
        "delta": 1e-6,
        "release_id": "0123abcd",
        "unit": "person",
        "attacker": {"false_alarm": 0.05, "most_recognised": 0.13201},
        "plan": {
            "touches": [
                {"kind": "histogram", "name": "votes", "cells": 1, "rounds": 7, "scale": 11.5},
                {"kind": "sum", "name": "means", "clip_norm": 1.0, "attempts": 2, "noise_multiplier": 6.0},
                {"kind": "training", "name": "tuning", "sampling_rate": 0.1, "steps": 40, "noise_multiplier": 1.3},
            ]
        },
        "declared": {"budget_shares": {"votes": 0.0625, "means": 0.125, "tuning": 0.8125}},
        "executed": {"votes": 7, "tuning": 39},
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
    """Elements with their attributes, text apart from styles, and whether every element is closed in order."""

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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
