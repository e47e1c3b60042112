"""Shapes that pages are made of: curves as points of an SVG polyline, nested results as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sfumato.report.facts import Curve

SIDE = 1000  # of a picture, in its own units; pages stretch it
MOST_POINTS = 200


class Line(NamedTuple):
    """A curve to be drawn.

    Attributes:
        name: of the curve.
        points: "x,y x,y ...", from 0 to `SIDE`, y downwards.
        first, last: its first and last x.
        low, high: its least and greatest y.
        start, end: its first and last y.
    """

    name: str
    points: str
    first: float
    last: float
    low: float
    high: float
    start: float
    end: float


def line(curve: Curve) -> Line:
    """Scales a curve to its own extremes; of very many points some are left out, never the last."""
    every = -(-len(curve.points) // MOST_POINTS)
    kept = curve.points[::every]
    if kept[-1] != curve.points[-1]:
        kept = [*kept, curve.points[-1]]
    xs, ys = [x for x, _ in curve.points], [y for _, y in curve.points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    across, up = (right - left) or 1.0, (high - low) or 1.0
    points = " ".join(f"{SIDE * (x - left) / across:.1f},{SIDE - SIDE * (y - low) / up:.1f}" for x, y in kept)
    return Line(curve.name, points, left, right, low, high, ys[0], ys[-1])


class Table(NamedTuple):
    """A table: its title, "" for none, the heads of its columns, and its rows, each headed by its first cell."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(value: Mapping[str, Any]) -> list[Table]:
    """A nested result in words: a table for every list of like things, and one for all the rest.

    In the last, places are keys joined by commas, and lists of plain values stand on one line.
    """
    lists = {key: part for key, part in value.items() if _alike(part)}
    found = [
        Table(
            _words(key), [_words(name) for name in part[0]], [[_plain(cell) for cell in one.values()] for one in part]
        )
        for key, part in lists.items()
    ]
    rest = [list(row) for row in _rows("", {key: part for key, part in value.items() if key not in lists})]
    return [*found, Table("", ["found", "value"], rest)] if rest else found


def _alike(value: Any) -> bool:
    """Whether this is a list of flat results with the same keys in the same order."""
    if not isinstance(value, list) or not value or not all(isinstance(one, Mapping) and one for one in value):
        return False
    flat = not any(isinstance(cell, Mapping | list) for one in value for cell in one.values())
    return flat and all([*one] == [*value[0]] for one in value)


def _rows(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _rows(f"{place}, {_words(key)}" if place else _words(key), part)
    elif isinstance(value, list) and any(isinstance(part, Mapping | list) for part in value):
        for number, part in enumerate(value, 1):
            yield from _rows(f"{place}, {number}" if place else str(number), part)
    elif isinstance(value, list):
        yield place, ", ".join(map(_plain, value)) or "none"
    else:
        yield place, _plain(value)


def _words(key: object) -> str:
    return str(key).replace("_", " ")


def _plain(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)
