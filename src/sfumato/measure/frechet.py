"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017), whatever network made the features.

Only with the features of one certain Inception network is it the FID of published tables. Its bias shrinks with the
number of images and depends on what is measured, so compare distances of equal numbers of images only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfumato.measure.neighbours import check_features

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Frechet:
    """A distance, 0 or more, and from how many images it is.

    Attributes:
        distance: squared 2-Wasserstein distance of the two Gaussians, in squared units of the features.
        real, generated: numbers of images.
    """

    distance: float
    real: int
    generated: int

    def __str__(self) -> str:
        return f"Frechet distance {self.distance:.4g} ({self.generated} against {self.real} images)"


def frechet_distance(real: NDArray[np.floating], generated: NDArray[np.floating]) -> Frechet:
    """The Frechet distance between features `(N, d)` and `(M, d)`, at least two rows each.

    |mean - mean'|^2 + tr S + tr S' - 2 tr (S S')^(1/2) with unbiased covariances S (Dowson and Landau 1982). With
    S = A^T A and S' = B^T B the last trace is the sum of the singular values of A B^T: no root of a matrix is taken,
    and nothing is singular when there are fewer images than dimensions, for A then has a row an image.

    Raises:
        UserError: too few rows, rows of two lengths, or values that are not finite.
    """
    check_features(real, generated, least=2)
    (mean, root), (other_mean, other_root) = _moments(real), _moments(generated)
    distance = _distance(mean, root, other_mean, other_root)
    return Frechet(distance, len(real), len(generated))


def gaussian_frechet(mean: Matrix, covariance: Matrix, other_mean: Matrix, other_covariance: Matrix) -> float:
    """The Frechet distance between two Gaussians given by means `(d,)` and symmetric covariances `(d, d)`.

    Negative eigenvalues, as noise or rounding leave them, count as 0.
    """
    return _distance(mean, _root(covariance), other_mean, _root(other_covariance))


def _distance(mean: Matrix, root: Matrix, other_mean: Matrix, other_root: Matrix) -> float:
    """From means `(d,)` and matrices `(r, d)` whose products with themselves are the covariances."""
    overlap = np.linalg.svd(root @ other_root.T, compute_uv=False).sum()
    spread = (root**2).sum() + (other_root**2).sum()
    distance = ((mean - other_mean) ** 2).sum() + spread - 2 * overlap
    return max(0.0, float(distance))  # rounding can bring the distance of equal sets below 0


def _moments(features: NDArray[np.floating]) -> tuple[Matrix, Matrix]:
    """Mean `(d,)` and a matrix `(min(N, d), d)` whose product with itself is the covariance."""
    rows = np.asarray(features, np.float64)
    mean = rows.mean(0)
    rows = (rows - mean) / np.sqrt(len(rows) - 1)
    return mean, np.asarray(np.linalg.qr(rows, mode="r")) if len(rows) > rows.shape[1] else rows


def _root(covariance: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    root: Matrix = np.sqrt(values.clip(0))[:, None] * vectors.T
    return root
