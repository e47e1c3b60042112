"""Which public classes stand for which private class: post-processing of one noisy histogram.

PrivImage (Li et al., USENIX Security 2024, section 4.2) lets the private classes choose one after the other, so the
first take what the last needed. Here all choose at once, by the assignment with the greatest sum of noisy votes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Rule = Literal["best", "in order", "overlapping"]


def select(votes: NDArray[np.int64], kept: int, rule: Rule = "best") -> NDArray[np.int64]:
    """Chooses `kept` public classes for each private class.

    Args:
        votes: noisy histogram `(private classes, public classes)`.
        kept: at least 1, at most the public classes; times the private classes at most the public ones, unless private
            classes may share them.
        rule: "best" gives disjoint sets with the greatest possible sum of votes; "in order" is the paper's: each
            private class in turn takes the best that are left; "overlapping" gives every private class its best.

    Returns:
        int64 `(private classes, kept)`, by falling votes, ties by rising number.
    """
    rows = len(votes)
    if rule == "best":
        chooser, chosen = linear_sum_assignment(votes.repeat(kept, axis=0), maximize=True)
        picked = chosen[np.argsort(chooser // kept, kind="stable")].reshape(rows, kept)
    elif rule == "in order":
        left = votes.astype(np.float64)
        picked = np.empty((rows, kept), dtype=np.int64)
        for row in range(rows):
            picked[row] = np.argsort(-left[row], kind="stable")[:kept]
            left[:, picked[row]] = -np.inf
    else:
        picked = np.argsort(-votes, axis=1, kind="stable")[:, :kept]
    picked = np.sort(picked, axis=1)
    order = np.argsort(-np.take_along_axis(votes, picked, axis=1), axis=1, kind="stable")
    found: NDArray[np.int64] = np.take_along_axis(picked, order, axis=1)
    return found


def classes_kept(share: float, private: int, public: int, rule: Rule) -> int:
    """How many public classes a private class gets where `share` of them are kept in all; at least 1."""
    most = public if rule == "overlapping" else public // private
    return max(1, min(most, round(share * public / private)))
