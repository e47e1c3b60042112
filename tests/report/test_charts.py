from __future__ import annotations

import pytest

from sfumato.report.charts import MOST_POINTS, Table, line, tables
from sfumato.report.facts import Curve


def test_a_curve_fills_its_picture_and_points_up() -> None:
    drawn = line(Curve("loss", [(10.0, 4.0), (20.0, 1.0), (30.0, 2.5)]))
    assert drawn.points == "0.0,0.0 500.0,1000.0 1000.0,500.0"
    assert (drawn.first, drawn.last, drawn.low, drawn.high, drawn.start, drawn.end) == (10, 30, 1, 4, 4, 2.5)


@pytest.mark.parametrize("points", [[(3.0, 7.0)], [(0.0, 1.0), (0.0, 1.0)]])
def test_a_curve_without_extent_is_drawn(points: list[tuple[float, float]]) -> None:
    assert line(Curve("flat", points)).points.split()[0] == "0.0,1000.0"


@pytest.mark.parametrize("count", [MOST_POINTS, 4 * MOST_POINTS + 1, 4 * MOST_POINTS + 3])
def test_of_many_points_the_last_is_never_left_out(count: int) -> None:
    drawn = line(Curve("long", [(float(x), float(x)) for x in range(count)]))
    points = drawn.points.split()
    assert len(points) <= MOST_POINTS + 1
    assert points[-1] == "1000.0,0.0"
    assert drawn.high == count - 1


def test_nested_results_become_tables() -> None:
    value = {
        "a_b": {"b": 1.23456, "c_d": [1, "x", None]},
        "bounds": [{"lower_bound": 0.5, "broken": False}, {"lower_bound": 2, "broken": True}],
        "mixed": [{"e": 1}, {"f": 2}],
        "f": [],
        "g": {},
    }
    assert tables(value) == [
        Table("bounds", ["lower bound", "broken"], [["0.5", "no"], ["2", "yes"]]),
        Table(
            "",
            ["found", "value"],
            [
                ["a b, b", "1.235"],
                ["a b, c d", "1, x, none"],
                ["mixed, 1, e", "1"],
                ["mixed, 2, f", "2"],
                ["f", "none"],
            ],
        ),
    ]
    assert tables({}) == []
