from __future__ import annotations

import numpy as np

from sfumato.report.sheet import neighbours_sheet


def test_what_belongs_together_is_in_a_column() -> None:
    rows = [("one", 10), ("two", 60), ("three", 110)]
    images = [
        (name, np.stack([np.full((1, 8, 8), shade + 20 * column, np.uint8) for column in range(2)]))
        for name, shade in rows
    ]
    grid = np.asarray(neighbours_sheet(images, 4))[:, :, 0]
    height, width = grid.shape
    tops, side = [12 + 35 * row for row in range(3)], 32
    lefts = [width - 12 - 2 * side - 3, width - 12 - side]
    assert height == 2 * 12 + 3 * 35 - 3
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            tile = grid[top : top + side, left : left + side]
            assert (tile == 10 + 50 * row + 20 * column).all()
