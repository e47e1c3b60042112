"""The choice of public classes: the best there is, by brute force, and fairer than one after the other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sfumato.methods.selection import classes_kept, select


def total(votes: np.ndarray, chosen: np.ndarray) -> int:  # type: ignore[type-arg]
    return int(np.take_along_axis(votes, chosen, axis=1).sum())


def best_total(votes: np.ndarray, kept: int) -> int:  # type: ignore[type-arg]
    """By trying every choice of disjoint sets."""

    def best(row: int, left: frozenset[int]) -> int:
        if row == len(votes):
            return 0
        return max(
            int(votes[row, list(some)].sum()) + best(row + 1, left - set(some))
            for some in itertools.combinations(sorted(left), kept)
        )

    return best(0, frozenset(range(votes.shape[1])))


@pytest.mark.parametrize(
    ("rows", "columns", "kept"), [(1, 5, 2), (2, 5, 2), (3, 6, 2), (3, 7, 1), (2, 6, 3), (4, 4, 1)]
)
def test_the_best_choice(rows: int, columns: int, kept: int) -> None:
    better = 0
    for seed in range(12):
        votes = np.random.default_rng(seed).integers(-5, 20, (rows, columns))
        chosen, greedy = select(votes, kept), select(votes, kept, "in order")
        assert chosen.shape == greedy.shape == (rows, kept)
        for found in (chosen, greedy):
            assert len(set(found.ravel().tolist())) == rows * kept
            falling = np.take_along_axis(votes, found, axis=1)
            assert (np.diff(falling, axis=1) <= 0).all()
        assert total(votes, chosen) == best_total(votes, kept)
        assert total(votes, greedy) <= total(votes, chosen)
        better += total(votes, greedy) < total(votes, chosen)
    assert better > 0 or rows == 1


def test_the_first_in_order_takes_what_the_second_needs() -> None:
    votes = np.array([[10, 9, 0], [8, 0, 0]])
    assert select(votes, 1, "in order").tolist() == [[0], [1]]
    assert select(votes, 1).tolist() == [[1], [0]]
    assert select(votes, 1, "overlapping").tolist() == [[0], [0]]


def test_ties_go_to_the_lowest_number() -> None:
    votes = np.zeros((1, 6), dtype=np.int64)
    assert select(votes, 3, "overlapping").tolist() == [[0, 1, 2]]
    assert select(votes, 3, "in order").tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("share", "private", "public", "rule", "kept"),
    [
        (0.05, 10, 1000, "best", 5),  # the paper's CIFAR-10: 50 classes of 1,000
        (0.05, 10, 100, "best", 1),
        (1.0, 3, 10, "best", 3),
        (1.0, 3, 10, "overlapping", 3),
        (1.0, 1, 10, "best", 10),
        (0.5, 20, 10, "overlapping", 1),
    ],
)
def test_how_many_are_kept(share: float, private: int, public: int, rule: str, kept: int) -> None:
    assert classes_kept(share, private, public, rule) == kept  # type: ignore[arg-type]
