"""Density and coverage of generated images by nearest neighbours (Naeem et al. 2020), sturdier than precision.

For two sets from one distribution the expected density is 1, and the expected coverage is known whatever the
distribution (`expected_coverage`); precision and recall have no such values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfumato.measure.neighbours import check_features, distance_blocks, radii

NEIGHBOURS = 5  # as in the paper


@dataclass(frozen=True)
class DensityCoverage:
    """A ratio and a share.

    Attributes:
        density: how many balls around real images a generated image lies in, over `neighbours`; may exceed 1.
        coverage: share of real images whose ball holds a generated image.
        neighbours: k of the balls.
        real, generated: numbers of images.
    """

    density: float
    coverage: float
    neighbours: int
    real: int
    generated: int

    def __str__(self) -> str:
        return (
            f"density {self.density:.3f}, coverage {self.coverage:.3f}, {self.neighbours} neighbours "
            f"({self.generated} against {self.real} images)"
        )


def density_coverage(
    real: NDArray[np.floating], generated: NDArray[np.floating], neighbours: int = NEIGHBOURS
) -> DensityCoverage:
    """Density and coverage from features `(N, d)` and `(M, d)` (section 3 of the paper).

    A ball around a real image is closed and reaches to its `neighbours`-th nearest other real image.

    Raises:
        UserError: fewer than `neighbours` + 1 rows, rows of two lengths, or values that are not finite.
    """
    check_features(real, generated)
    reach = radii(real, neighbours)
    inside = 0
    covered = np.zeros(len(real), bool)
    for _, distances in distance_blocks(generated, real):
        within = distances <= reach
        inside += int(within.sum())
        covered |= within.any(0)
    density = inside / (neighbours * len(generated))
    return DensityCoverage(density, float(covered.mean()), neighbours, len(real), len(generated))


def expected_coverage(real: int, generated: int, neighbours: int = NEIGHBOURS) -> float:
    """Expected coverage of `real` by `generated` images of the same continuous distribution (lemma 2 of the paper).

    A real image is missed if its `neighbours` nearest among all other images are real ones.
    """
    return 1 - math.prod((real - 1 - i) / (real + generated - 1 - i) for i in range(neighbours))
