"""The warm start of Spectral: what one noisy sum of the coarse band says about where the private images lie.

The sum is that of `prototypes.py` on thumbnails: each class's mean, count and second moments. Two uses, both free:

- *public*: public images are weighted so that their mean in the coarse band moves to that of the private class
  (exponential tilting), and the model learns on images drawn by these weights. They are sharp and real.
- *model*: where too few public images are left, thumbnails are drawn from the released Gaussian model of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sfumato.methods.prototypes import _MEAN_WEIGHT, Layout, Prototypes, read_prototypes
from sfumato.nets.tokenizer import Tokenizer
from sfumato.privacy.records import Rows

LEAST = 200.0
"""Public images that must count (Kish's effective number) for a class; weights are evened out until so many do."""

WHOLE = 0.5
"""Share of the way to the private mean that evened weights must go, or the class models take their place."""

_RIDGE = 0.01  # of the mean variance: directions in which public images hardly differ shall not decide


@dataclass(frozen=True)
class CoarseBand:
    """The warm start's sum: thumbnails as a public, fixed function of each record's image.

    Attributes:
        tokenizer: whose coarsest scale is meant.
        classes: declared ones; 0 for an unconditional run.
    """

    tokenizer: Tokenizer
    classes: int

    @property
    def layout(self) -> Layout:
        """Of what one record adds; its norm is below 1 for every image, so nothing is ever clipped."""
        return Layout(self.tokenizer.shape.small(1), max(self.classes, 1))

    def vectors(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The per-record function of the touch, see `Layout.vectors`."""
        return self.layout.vectors(rows._replace(images=self.thumbnails(rows.images)))

    def thumbnails(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` to means of blocks, float32 `(N, C, h, w)`, 0 to 255; exact for whole numbers."""
        return self.tokenizer.picture(self.tokenizer.patches(images, 1))

    def floor(self, size: int | None) -> float:
        """Least number of records that a class is divided by, public."""
        return 0.1 * size / max(self.classes, 1) if size else 10.0

    def read(self, noisy: NDArray[np.float64], multiplier: float, size: int | None) -> Prototypes:
        """Class models from the released sum."""
        return read_prototypes(noisy, self.layout, multiplier, self.floor(size))


@dataclass(frozen=True)
class Tilt:
    """Weights of public images for one class.

    Attributes:
        weights: float64 `(N,)`, of sum 1.
        share: of the way to the private mean that they go, in (0, 1].
        count: effective number of images.
    """

    weights: Tensor
    share: float
    count: float


def tilt(thumbnails: Tensor, mean: Tensor, deviation: float, layout: Layout) -> Tilt:
    """Weights `exp(b . l)` of public images whose mean in the coarse coefficients l is near a released one.

    For a Gaussian set of covariance S, `b = S^-1 (private mean - public mean)` moves its mean exactly there. Noise is
    taken out first, direction by direction: a shift d of noise t counts as `d max(0, 1 - t^2 / d^2)`.

    Args:
        thumbnails: public ones, `(N, C, h, w)`, 0 to 255.
        mean: released mean of the class, `(C, h, w)` in [-1, 1].
        deviation: of the noise in every coordinate of it.
        layout: says what the coarse coefficients are.
    """
    low = layout.to_coarse(thumbnails / 127.5 - 1).double()
    centre = low.mean(0)
    spread, directions = torch.linalg.eigh(torch.cov((low - centre).T) if low.shape[1] > 1 else low.var(0)[:, None])
    shift = (layout.to_coarse(mean[None]).double()[0] - centre) @ directions
    shift = shift * (1 - deviation**2 / shift.square().clamp(min=1e-12)).clamp(min=0)
    ridge = deviation**2 + _RIDGE * float(spread.mean()) + 1e-12
    slope = shift / (spread.clamp(min=0) + ridge)
    logs = (low - centre) @ directions @ slope
    wanted = min(LEAST, 0.5 * len(logs))
    share, least, most = 1.0, 0.0, 1.0
    if _effective(logs) < wanted:
        for _ in range(30):
            share = (least + most) / 2
            least, most = (share, most) if _effective(share * logs) >= wanted else (least, share)
        share = least
    return Tilt((share * logs).softmax(0), share, _effective(share * logs))


def _effective(logs: Tensor) -> float:
    """Kish's effective number of images with weights `exp(logs)`."""
    return float(torch.exp(2 * logs.logsumexp(0) - (2 * logs).logsumexp(0)))


def mean_deviation(layout: Layout, multiplier: float, count: float) -> float:
    """Standard deviation of the noise in a coordinate of a released mean of `count` records."""
    return multiplier / _MEAN_WEIGHT * layout.radius / count


def warm_batches(
    band: CoarseBand,
    prototypes: Prototypes,
    multiplier: float,
    pictures: Tensor,
    source: Literal["auto", "public", "model"],
    condition_of: Callable[[Tensor, Tensor], Tensor],
    batch: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Coarse tokens and conditions to learn from, classes equally often; from public and released values only.

    Args:
        band: tokenizer and classes.
        prototypes: released class models.
        multiplier: noise multiplier of the sum.
        pictures: public ones, uint8 `(N, C, H, W)`.
        source: where images are taken from.
        condition_of: from labels, and numbers of pictures or -1, to what the model is told.
        batch: images a step.
        generator: public.
    """
    layout = band.layout
    thumbnails = torch.cat([band.thumbnails(part) for part in torch.split(pictures, 256)])
    tilts = [
        tilt(thumbnails, mean, mean_deviation(layout, multiplier, float(count)), layout)
        for mean, count in zip(prototypes.means, prototypes.counts, strict=True)
    ]
    drawn = torch.tensor([source == "model" or (source == "auto" and found.share < WHOLE) for found in tilts])
    weights = torch.stack([found.weights for found in tilts])
    side = 1 << band.tokenizer.shape.levels
    while True:
        labels = torch.randint(layout.classes, (batch,), generator=generator)
        places = torch.multinomial(weights[labels], 1, generator=generator)[:, 0]
        models = (prototypes.sample(labels, generator) + 1) * 127.5
        places = torch.where(drawn[labels], -1, places)
        chosen = torch.where((places < 0)[:, None, None, None], models, thumbnails[places])
        tokens = band.tokenizer.encode(F.interpolate(chosen, scale_factor=side, mode="nearest"), 1)
        yield tokens, condition_of(labels if band.classes else torch.full_like(labels, -1), places)
