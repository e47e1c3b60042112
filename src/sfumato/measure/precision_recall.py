"""Precision and recall of generated images by nearest neighbours (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfumato.measure.neighbours import check_features, distance_blocks, radii

NEIGHBOURS = 3  # as in the paper


@dataclass(frozen=True)
class PrecisionRecall:
    """Two shares.

    Attributes:
        precision: share of generated images that lie among the real ones: are they plausible?
        recall: share of real images that lie among the generated ones: is everything there?
        neighbours: k of the balls.
        real, generated: numbers of images; both shares grow and fall with them.
    """

    precision: float
    recall: float
    neighbours: int
    real: int
    generated: int

    def __str__(self) -> str:
        return (
            f"precision {self.precision:.3f}, recall {self.recall:.3f}, {self.neighbours} neighbours "
            f"({self.generated} against {self.real} images)"
        )


def precision_recall(
    real: NDArray[np.floating], generated: NDArray[np.floating], neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Precision and recall from features `(N, d)` and `(M, d)`.

    To lie among a set is to lie in a closed ball around one of its points that reaches to the point's `neighbours`-th
    nearest other point (equation 1 of the paper).

    Raises:
        UserError: fewer than `neighbours` + 1 rows, rows of two lengths, or values that are not finite.
    """
    check_features(real, generated)
    around_real, around_generated = radii(real, neighbours), radii(generated, neighbours)
    among_real, among_generated = np.zeros(len(generated), bool), np.zeros(len(real), bool)
    for rows, distances in distance_blocks(generated, real):
        among_real[rows] = (distances <= around_real).any(1)
        among_generated |= (distances <= around_generated[rows, None]).any(0)
    return PrecisionRecall(
        float(among_real.mean()), float(among_generated.mean()), neighbours, len(real), len(generated)
    )
