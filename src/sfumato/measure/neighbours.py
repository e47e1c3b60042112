"""Exact distances between sets of feature vectors, a block at a time.

Distances are summed from differences, not taken from products of vectors: copies are then exactly 0 apart, and a
distance does not depend on the block it is computed in, so ties are ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from sfumato.errors import UserError

BLOCK = 2**23  # distances that are held at a time


class Block(NamedTuple):
    """Distances of some consecutive queries, `rows` of them all, to all points."""

    rows: slice
    distances: NDArray[np.float64]


def distance_blocks(queries: NDArray[np.floating], points: NDArray[np.floating]) -> Iterator[Block]:
    """Euclidean distances of `queries` `(N, d)` to `points` `(M, d)`, in blocks of whole rows."""
    far = np.asarray(points, np.float64)
    height = max(1, BLOCK // max(1, len(points)))
    for start in range(0, len(queries), height):
        rows = slice(start, min(start + height, len(queries)))
        yield Block(rows, cdist(np.asarray(queries[rows], np.float64), far))


def radii(points: NDArray[np.floating], neighbours: int) -> NDArray[np.float64]:
    """Distance of each of `points` `(N, d)` to its `neighbours`-th nearest other point, `(N,)`.

    Raises:
        UserError: there are not that many other points.
    """
    if not 1 <= neighbours < len(points):
        raise UserError(
            f"Asked for neighbour {neighbours} among {len(points)} images; give at least {neighbours + 1} images."
        )
    found = np.empty(len(points))
    for rows, distances in distance_blocks(points, points):
        distances[:, rows][np.diag_indices(len(distances))] = np.inf  # itself, but not its copies
        found[rows] = np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1]
    return found


class Nearest(NamedTuple):
    """Of each query: its distance to the nearest point, and that point's index, the lowest of several."""

    distances: NDArray[np.float64]
    indices: NDArray[np.int64]


def nearest(queries: NDArray[np.floating], points: NDArray[np.floating]) -> Nearest:
    """The nearest of `points` `(M, d)` to each of `queries` `(N, d)`."""
    check_features(queries, points)
    found = Nearest(np.empty(len(queries)), np.empty(len(queries), np.int64))
    for rows, distances in distance_blocks(queries, points):
        found.distances[rows], found.indices[rows] = distances.min(1), distances.argmin(1)
    return found


def check_features(one: NDArray[np.floating], other: NDArray[np.floating], least: int = 1) -> None:
    """Refuses (UserError) features that no distance can be measured between: too few, of two lengths, not finite."""
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or not one.shape[1]:
        raise UserError(
            f"Features have the shapes {one.shape} and {other.shape}; give rows of one and the same length."
        )
    if min(len(one), len(other)) < least:
        raise UserError(f"There are {len(one)} and {len(other)} images to compare; give at least {least} each.")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise UserError("Some features are not finite numbers, so nothing can be measured between them.")
