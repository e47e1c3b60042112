from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import UserError
from sfumato.measure import neighbours
from sfumato.measure.neighbours import distance_blocks, nearest, radii


def brute(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.sqrt(((one[:, None].astype(np.float64) - other[None]) ** 2).sum(2))


@pytest.mark.parametrize("block", [1, 7, 2**23])
def test_blocks_do_not_change_distances(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    random = np.random.default_rng(0)
    one, other = (random.normal(size=(count, 5)).astype(np.float32) for count in (23, 11))
    expected = brute(one, other)
    found = np.full((23, 11), np.nan)
    for rows, distances in distance_blocks(one, other):
        found[rows] = distances
    assert np.allclose(found, expected, rtol=1e-12)
    near = nearest(one, other)
    assert np.array_equal(near.indices, expected.argmin(1))
    assert np.allclose(near.distances, expected.min(1))
    within = np.sort(brute(one, one), axis=1)  # column 0 is the point itself
    for k in (1, 3, 22):
        assert np.allclose(radii(one, k), within[:, k])


def test_a_point_is_not_its_own_neighbour_but_its_copy_is_and_is_exactly_there() -> None:
    points = 1e4 + np.random.default_rng(0).normal(size=(6, 300))
    points[4] = points[1]
    points[5] = points[2]
    points[5, 0] += 1e-6
    assert (radii(points, 1) == 0).tolist() == [False, True, False, False, True, False]
    assert radii(points, 1)[5] == pytest.approx(1e-6, rel=1e-4)
    assert nearest(points[1:2], points).distances[0] == 0
    assert nearest(points[4:5], points).indices[0] == 1


def test_what_cannot_be_measured_is_one_sentence() -> None:
    some = np.zeros((3, 2))
    with pytest.raises(UserError, match="at least 4 images"):
        radii(some, 3)
    with pytest.raises(UserError, match="one and the same length"):
        nearest(some, np.zeros((3, 4)))
    with pytest.raises(UserError, match="0 and 3 images"):
        nearest(some[:0], some)
    with pytest.raises(UserError, match="not finite"):
        nearest(some, np.full((1, 2), np.nan))
