"""What one noisy sum can tell of each class: its mean picture and the few directions in which its pictures vary most.

The result is a small Gaussian model per class. Its samples are blurred, but they are the right silhouettes, cost one
touch, and give a diffusion model a start from which private training has far less to learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

from sfumato.nets.wavelet import haar
from sfumato.privacy.records import Rows

_MEAN_WEIGHT, _COUNT_WEIGHT, _MOMENT_WEIGHT = 0.66, 0.14, 0.738  # squares sum to less than 1
_MOST_COARSE = 64
_CLEAR = 0.06  # deviation of the noise in a class mean, on pixels in [-1, 1], below which less of it gains little
_LEAST_SHARE, _LARGEST_SHARE = 0.04, 0.25  # of mu^2
_TINY = 1e-12  # instead of a division by zero


@dataclass(frozen=True)
class Layout:
    """Where what lies in the vector that one record adds to the sum.

    A record's vector is zero outside the block of its class. The block holds the picture x (centred at mid-grey, scaled
    into the unit ball by the pixel range alone), a one, and the products of x with its own coarse version l. The three
    parts are weighted so that the vector's norm is below 1 for every possible picture: nothing is ever clipped.

    Attributes:
        shape: `(C, H, W)` of the pictures.
        classes: number of classes, at least 1 (1 when unconditional).
    """

    shape: tuple[int, int, int]
    classes: int

    @property
    def pixels(self) -> int:
        """Coordinates of a picture."""
        return math.prod(self.shape)

    @property
    def radius(self) -> float:
        """Largest norm of a picture with values in [-1, 1]."""
        return math.sqrt(self.pixels)

    @property
    def halvings(self) -> int:
        """Haar levels between a picture and its coarse version of at most 64 coefficients."""
        channels, height, width = self.shape
        levels = 0
        while channels * height * width > _MOST_COARSE and height % 2 == 0 and width % 2 == 0:
            height, width, levels = height // 2, width // 2, levels + 1
        return levels

    @property
    def coarse(self) -> int:
        """Coefficients of the coarse version."""
        return self.pixels >> 2 * self.halvings

    @property
    def block(self) -> int:
        """Coordinates of one class."""
        return self.pixels + 1 + self.coarse * self.pixels

    def to_coarse(self, pictures: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, coarse)`: orthonormal, so norms never grow."""
        for _ in range(self.halvings):
            pictures = haar(pictures)[:, : self.shape[0]]
        return pictures.flatten(1)

    def vectors(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The per-record function of the touch: blocks `(R,)` and vectors `(R, block)` of norm below 1."""
        pictures = rows.images.float() / 127.5 - 1
        x = pictures.flatten(1) / self.radius
        low = self.to_coarse(pictures) / self.radius
        moment = (low[:, :, None] * x[:, None, :]).flatten(1)
        count = torch.full((len(x), 1), _COUNT_WEIGHT)
        vectors = torch.cat((_MEAN_WEIGHT * x, count, _MOMENT_WEIGHT * moment), dim=1)
        return rows.labels.clamp(min=0), vectors


def share_for_clear_means(layout: Layout, size: int, mu: float, attempts: int) -> float:
    """Share of mu^2 for which each of so many noisy sums shows the class means clearly, between 4 and 25 % in all.

    The less budget and records there are, the larger it is: noise in a mean falls with the records of its class, and
    with the Gaussian-DP parameter of the sum alone.

    Args:
        layout: of the sum.
        size: declared number of records.
        mu: Gaussian-DP parameter of the whole run.
        attempts: that share it.
    """
    needed = layout.radius / (_MEAN_WEIGHT * _CLEAR * size / layout.classes)
    return min(max(attempts * (needed / mu) ** 2, _LEAST_SHARE), _LARGEST_SHARE)


@dataclass(frozen=True)
class Prototypes:
    """A released Gaussian model of each class.

    Attributes:
        means: `(classes, C, H, W)` in [-1, 1].
        factors: `(classes, F, C, H, W)`; a sample is the mean plus a standard normal combination of the factors.
        counts: noisy number of records per class, at least 1.
    """

    means: Tensor
    factors: Tensor
    counts: Tensor

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures `(N, C, H, W)` in [-1, 1] for labels `(N,)`."""
        weights = torch.randn(len(labels), self.factors.shape[1], generator=generator)
        pictures = self.means[labels]
        for label in range(len(self.factors)):  # class by class, because a picture's own copy of its factors is large
            rows = labels == label
            pictures[rows] += torch.tensordot(weights[rows], self.factors[label], dims=1)
        return pictures.clamp_(-1, 1)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save."""
        return {"means": self.means, "factors": self.factors, "counts": self.counts}


def read_prototypes(
    noisy: NDArray[np.float64], layout: Layout, noise_deviation: float, floor: float, factors: int = 24
) -> Prototypes:
    """Turns a noisy sum into class models; post-processing of released values.

    Args:
        noisy: the noisy sum of `layout.vectors`, `(classes, block)`.
        layout: its layout.
        noise_deviation: standard deviation of the noise in every coordinate, public.
        floor: least number of records a class is divided by, public.
        factors: most directions kept per class.
    """
    parts = torch.from_numpy(noisy)
    pixels, coarse = layout.pixels, layout.coarse
    counts = (parts[:, pixels] / _COUNT_WEIGHT).clamp(min=floor)
    means = parts[:, :pixels] / _MEAN_WEIGHT * layout.radius / counts[:, None]
    moments = parts[:, pixels + 1 :].view(-1, coarse, pixels) / _MOMENT_WEIGHT * layout.radius**2
    kept = torch.zeros(layout.classes, factors, pixels, dtype=torch.float64)
    for number, (mean, moment, count) in enumerate(zip(means, moments, counts, strict=True)):
        picture = mean.view(1, *layout.shape)
        covariance = moment / count - layout.to_coarse(picture).T @ mean[None]
        deviation = noise_deviation / _MOMENT_WEIGHT * layout.radius**2 / float(count)
        kept[number] = _leading_factors(covariance, layout, deviation, factors)
    deviations = noise_deviation / _MEAN_WEIGHT * layout.radius / counts
    means = without_noise(means.view(-1, *layout.shape), deviations)
    shape = (layout.classes, *layout.shape)
    return Prototypes(
        means=means.view(shape).clamp(-1, 1).float(),
        factors=kept.view(layout.classes, factors, *layout.shape).float(),
        counts=counts.float(),
    )


def _leading_factors(covariance: Tensor, layout: Layout, deviation: float, factors: int) -> Tensor:
    """`(factors, pixels)` from a noisy `Cov(l, x)` `(coarse, pixels)`; zero where noise hides the direction.

    With `Cov(l) = U diag(v) U^T`, the regression of x on the unit-variance scores `U^T l / sqrt(v)` has the loadings
    `U^T Cov(l, x) / sqrt(v)`. Directions whose variance is below twice the noise's largest eigenvalue are dropped.
    """
    low = torch.stack([layout.to_coarse(row.view(1, *layout.shape))[0] for row in covariance])
    variances, directions = torch.linalg.eigh((low + low.T) / 2)
    order = variances.argsort(descending=True)[:factors]
    variances, directions = variances[order], directions[:, order]
    threshold = 2 * deviation * math.sqrt(2 * layout.coarse)
    spread = variances.clamp(min=max(threshold, _TINY)).sqrt()
    loadings = without_noise((directions.T @ covariance / spread[:, None]).view(-1, *layout.shape), deviation / spread)
    kept = torch.zeros(factors, layout.pixels, dtype=covariance.dtype)
    kept[: len(order)] = torch.where((variances > threshold)[:, None], loadings.flatten(1), 0.0)
    return kept


def without_noise(pictures: Tensor, deviations: Tensor) -> Tensor:
    """Shrinks white noise of known size: pictures are smooth, so it is most of what they have at high frequencies.

    Coefficients of the cosine transform are taken in rings of equal frequency, and each ring is multiplied by
    `1 - noise energy / energy found`, or 0: a Wiener filter whose spectrum is estimated from the picture itself, close
    to the positive-part estimator of James and Stein.

    Args:
        pictures: float64 `(N, C, H, W)`.
        deviations: standard deviation of the noise in each picture, `(N,)`; 0 leaves it as it is.
    """
    height, width = pictures.shape[2:]
    rings = torch.from_numpy(np.hypot(*np.mgrid[:height, :width]).round().astype(np.int64)).flatten()
    found = torch.from_numpy(fft.dctn(pictures.numpy(), axes=(2, 3), norm="ortho"))
    energy = torch.zeros(len(pictures), int(rings.max()) + 1, dtype=pictures.dtype)
    energy.index_add_(1, rings, found.square().sum(1).flatten(1))
    noise = pictures.shape[1] * torch.bincount(rings) * deviations[:, None] ** 2
    kept = (1 - noise / energy.clamp(min=_TINY)).clamp(0, 1)[:, rings].view(-1, 1, height, width)
    return torch.from_numpy(fft.idctn((found * kept).numpy(), axes=(2, 3), norm="ortho"))
