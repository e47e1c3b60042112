"""Figures on private images that may be published, because they are bought: what touches ask, and what noise leaves.

Two can be had from touches of small sensitivity: how often a classifier that learned from the release is right about a
private record (one vote a record), and a Frechet distance (one noisy sum of features and their products). What looks at
single neighbours among private images (precision, recall, nearest neighbours, memorisation) cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.measure.frechet import gaussian_frechet
from sfumato.pretrained.interfaces import ImageEmbedder
from sfumato.privacy.histogram import ABSTAIN
from sfumato.privacy.records import Rows

DIMENSIONS = 16
_MEAN, _COUNT, _PRODUCT = 0.66, 0.14, 0.738  # squares sum to less than 1
_RADIUS = 99  # percentile of the norms of synthetic features: beyond it features are shortened

Matrix = NDArray[np.float64]


def right_or_wrong(predict: Callable[[NDArray[np.uint8]], NDArray[np.int64]]) -> Callable[[Rows], Tensor]:
    """The per-record function of the touch "accuracy": cell 0 for a record that is classified correctly, else cell 1.

    Records are classified one at a time: in a batch, rounding errors would depend on a record's neighbours. A record of
    no declared class abstains.
    """

    def vote(rows: Rows) -> Tensor:
        cells = torch.full((len(rows.present), 1), ABSTAIN)
        for number in ((rows.labels >= 0) & rows.present).nonzero()[:, 0].tolist():
            guess = int(predict(rows.images[number : number + 1].numpy())[0])
            cells[number, 0] = 0 if guess == int(rows.labels[number]) else 1
        return cells

    return vote


@dataclass(frozen=True)
class Share:
    """A share from two noisy counts.

    Attributes:
        share: of the first, in [0, 1].
        error: about two standard deviations of what noise does to it; sampling error comes on top.
    """

    share: float
    error: float


def share_of(noisy: NDArray[np.int64], scale: float) -> Share:
    """The share of the first of two counts that carry discrete Gaussian noise of this scale."""
    first, second = (max(float(count), 0.0) for count in noisy)
    total = max(first + second, 1.0)
    share = first / total
    return Share(share, 2 * scale * math.hypot(share, 1 - share) / total)


@dataclass(frozen=True)
class Space:
    """Features in which a distance is bought: a few principal components of the synthetic images' features.

    Attributes:
        embedder: public.
        centre: `(D,)`, mean of the synthetic features.
        axes: `(D, d)`, orthonormal.
        radius: norm beyond which a projected feature is shortened.
        mean, covariance: of the synthetic features, projected and shortened.
    """

    embedder: ImageEmbedder
    centre: Matrix
    axes: Matrix
    radius: float
    mean: Matrix
    covariance: Matrix

    @classmethod
    def of(cls, embedder: ImageEmbedder, synthetic: NDArray[np.floating], dimensions: int = DIMENSIONS) -> Space:
        """From the features `(N, D)` of released images, N at least 2: post-processing."""
        rows = synthetic.astype(np.float64)
        centre = rows.mean(0)
        axes = np.linalg.svd(rows - centre, full_matrices=False)[2][:dimensions].T
        projected = (rows - centre) @ axes
        radius = float(np.percentile(np.linalg.norm(projected, axis=1), _RADIUS))
        kept = projected * (radius / np.linalg.norm(projected, axis=1, keepdims=True).clip(min=radius))
        return cls(embedder, centre, axes, radius, kept.mean(0), np.cov(kept, rowvar=False).reshape(axes.shape[1], -1))

    @property
    def length(self) -> int:
        """Coordinates of the vector that a record adds."""
        d = int(self.axes.shape[1])
        return d + 1 + d * (d + 1) // 2

    def vectors(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The per-record function of the touch "distance": block 0, and a vector `(R, length)` of norm below 1.

        It holds the feature over the radius, a one, and the products of its coordinates, weighted so that nothing is
        ever clipped by the touch.
        """
        images = rows.images.numpy()
        found = self.embedder.embed_images(images if images.shape[1] == 3 else images.repeat(3, axis=1))
        projected = torch.from_numpy((found.astype(np.float64) - self.centre) @ self.axes) / self.radius
        x = projected / projected.norm(dim=1, keepdim=True).clamp(min=1.0)
        upper = torch.triu_indices(x.shape[1], x.shape[1])
        twice = torch.where(upper[0] == upper[1], 1.0, math.sqrt(2))  # an off-diagonal product stands for two
        products = x[:, upper[0]] * x[:, upper[1]] * twice
        ones = torch.full((len(x), 1), _COUNT, dtype=x.dtype)
        vectors = torch.cat((_MEAN * x, ones, _PRODUCT * products), dim=1)
        return torch.zeros(len(x), dtype=torch.long), vectors.float()

    def distance(self, noisy: Matrix) -> float:
        """The Frechet distance to the synthetic images from the noisy sum `(length,)`."""
        d = self.axes.shape[1]
        count = max(float(noisy[d]) / _COUNT, 1.0)
        mean = self.radius * noisy[:d] / (_MEAN * count)
        upper = np.triu_indices(d)
        products = np.zeros((d, d))
        products[upper] = noisy[d + 1 :] / np.where(upper[0] == upper[1], 1.0, math.sqrt(2))
        products = products + products.T - np.diag(np.diag(products))
        covariance = self.radius**2 * products / (_PRODUCT * count) - np.outer(mean, mean)
        return gaussian_frechet(mean, covariance, self.mean, self.covariance)

    def by_noise_alone(self, noisy: Matrix, noise: float, seed: int = 0, draws: int = 20) -> float:
        """The mean distance that this noise would show if private images had the synthetic ones' very moments.

        Args:
            noisy: the released sum, for its noisy count.
            noise: standard deviation of a coordinate.
            seed: public.
            draws: of simulated noise.
        """
        d = self.axes.shape[1]
        count = max(float(noisy[d]) / _COUNT, 1.0)
        upper = np.triu_indices(d)
        second = (self.covariance + np.outer(self.mean, self.mean))[upper] / self.radius**2
        products = second * np.where(upper[0] == upper[1], 1.0, math.sqrt(2))
        clean = count * np.concatenate((_MEAN * self.mean / self.radius, [_COUNT], _PRODUCT * products))
        random = np.random.default_rng(seed)
        return float(np.mean([self.distance(clean + noise * random.standard_normal(len(clean))) for _ in range(draws)]))
