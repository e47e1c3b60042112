"""The kernel distance KID (Binkowski et al. 2018): maximum mean discrepancy of features under a cubic kernel.

Unlike the Frechet distance it is unbiased, so numbers of images may differ, and it can be below 0 for equal sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfumato.measure.neighbours import check_features

SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 0

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class KernelDistance:
    """A squared distance, averaged over random subsets.

    Attributes:
        mean: over subsets.
        deviation: standard deviation over subsets: how far one subset's value is off, not how far the mean is.
        subsets, subset_size: how many, and images from each side in one.
        real, generated: numbers of images that subsets are drawn from.
    """

    mean: float
    deviation: float
    subsets: int
    subset_size: int
    real: int
    generated: int

    def __str__(self) -> str:
        return (
            f"kernel distance {self.mean:.4g}, deviation {self.deviation:.2g} over {self.subsets} subsets of "
            f"{self.subset_size} ({self.generated} against {self.real} images)"
        )


def kernel_distance(
    real: NDArray[np.floating],
    generated: NDArray[np.floating],
    *,
    subsets: int = SUBSETS,
    subset_size: int | None = None,
) -> KernelDistance:
    """The kernel distance between features `(N, d)` and `(M, d)`, at least four rows each.

    Args:
        real, generated: features.
        subsets: how many are drawn, each without replacement, always the same.
        subset_size: images from each side in a subset; default SUBSET_SIZE as is usual, but at most half the images,
            or all subsets would be alike.

    Raises:
        UserError: too few rows, rows of two lengths, or values that are not finite.
    """
    check_features(real, generated, least=4)
    rows, others = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    size = subset_size or min(SUBSET_SIZE, len(rows) // 2, len(others) // 2)
    random = np.random.default_rng(SEED)
    found = [
        squared_mmd(
            rows[random.choice(len(rows), size, replace=False)],
            others[random.choice(len(others), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(found)), float(np.std(found)), subsets, size, len(rows), len(others))


def squared_mmd(one: Matrix, other: Matrix) -> float:
    """Unbiased squared discrepancy (Gretton et al. 2012, equation 3) under k(x, y) = (x y / d + 1)^3."""
    n, m = len(one), len(other)
    within, other_within, between = _kernel(one, one), _kernel(other, other), _kernel(one, other)
    return float(
        (within.sum() - within.trace()) / (n * (n - 1))
        + (other_within.sum() - other_within.trace()) / (m * (m - 1))
        - 2 * between.mean()
    )


def _kernel(one: Matrix, other: Matrix) -> Matrix:
    products: Matrix = one @ other.T / one.shape[1] + 1
    return products**3
