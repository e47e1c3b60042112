"""How near generated images come to certain real ones, beside how near other real images come to them.

Such figures are popular and are no evidence of privacy: a release can keep far from every private image and still tell
who was among them. They find plain copying, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfumato.measure.neighbours import nearest


@dataclass(frozen=True)
class Closeness:
    """Distances of images to the nearest real one, in units of the features.

    Attributes:
        smallest, lowest_1, lowest_5, median: the least distance, and those that 1, 5 and 50 % of images stay below.
        copies: images at distance 0.
        real, generated: numbers of images.
    """

    smallest: float
    lowest_1: float
    lowest_5: float
    median: float
    copies: int
    real: int
    generated: int

    def __str__(self) -> str:
        return (
            f"nearest neighbours at {self.smallest:.4g} (least), {self.lowest_1:.4g} (1 %), {self.lowest_5:.4g} (5 %), "
            f"{self.median:.4g} (half), copies {self.copies} ({self.generated} against {self.real} images)"
        )


def closeness(real: NDArray[np.floating], generated: NDArray[np.floating]) -> Closeness:
    """Distances of each row of `generated` `(M, d)` to the nearest row of `real` `(N, d)`.

    Raises:
        UserError: no rows, rows of two lengths, or values that are not finite.
    """
    distances = nearest(generated, real).distances
    smallest, lowest_1, lowest_5, median = (float(np.quantile(distances, share)) for share in (0, 0.01, 0.05, 0.5))
    copies = int((distances == 0).sum())
    return Closeness(smallest, lowest_1, lowest_5, median, copies, len(real), len(generated))


@dataclass(frozen=True)
class Lean:
    """Whether generated images lie nearer to the images that were learnt from than to others of the same kind.

    Attributes:
        share: of generated images nearer to a training than to a holdout image; ties count half. 1/2 if the generator
            knows no more of the one than of the other.
        deviation: standard deviation of the share in that case, that is, over all ways to divide the same real images
            into training and holdout images. Large if a few of them are nearest to most generated images.
        training, holdout, generated: numbers of images, the first two equal.
    """

    share: float
    deviation: float
    training: int
    holdout: int
    generated: int

    def __str__(self) -> str:
        return (
            f"{self.share:.1%} nearer to training than to holdout images, 50 % +- {self.deviation:.1%} without copying "
            f"({self.generated} against {self.training} and {self.holdout} images)"
        )


def lean(training: NDArray[np.floating], holdout: NDArray[np.floating], generated: NDArray[np.floating]) -> Lean:
    """Compares distances to training and to holdout images; the larger set is cut to the size of the other.

    Raises:
        UserError: as `closeness`.
    """
    count = min(len(training), len(holdout))
    to_training, to_holdout = nearest(generated, training[:count]), nearest(generated, holdout[:count])
    nearer, level = (compare(to_training.distances, to_holdout.distances) for compare in (np.less, np.equal))
    owner = np.where(nearer | level, to_training.indices, count + to_holdout.indices)
    weights = np.bincount(owner, minlength=2 * count) / len(generated)
    # The share is the sum of the weights of a random half of the real images: sampling without replacement.
    deviation = np.sqrt(weights.var(ddof=1) * 2 * count) / 2
    return Lean(float(np.mean(nearer + 0.5 * level)), float(deviation), count, count, len(generated))
