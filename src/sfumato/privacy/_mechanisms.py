"""The three mechanisms that are priced, as public numbers, and the checks that every number in a plan passes."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

from sfumato.errors import UserError

NOISE_RANGE = (0.1, 1e5)
"""Noise multipliers and scales priced: below, nothing is protected; above, the grid of losses is too coarse."""

SMALLEST_GRID_SCALE = 1000.0
"""Parameter of the discrete Gaussian, in grid steps, that an integer sum must at least use to be priced here."""


def positive(name: str, value: float, largest: float = math.inf, smallest: float = 0.0) -> float:
    """`value` as a float, if it is finite, above 0 and within [`smallest`, `largest`].

    *Guarantee:* a value that passes is usable in every formula of this package. *Does not cover:* its meaning.

    Raises:
        UserError: it is not such a number.
    """
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number > 0 and smallest <= number <= largest):
        low = f"at least {smallest:g}" if smallest else "above 0"
        high = f" and at most {largest:g}" if math.isfinite(largest) else ""
        raise UserError(f"{name} is {value!r}; it must be a number {low}{high}.")
    return number


def whole(name: str, value: int, smallest: int = 1) -> int:
    """`value` as an int, if it is a whole number of at least `smallest`.

    *Guarantee:* counts that enter accounting are exact. *Does not cover:* that the count is the true one.

    Raises:
        UserError: it is not such a number.
    """
    try:
        number = smallest - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = smallest - 1
    if number < smallest:
        raise UserError(f"{name} is {value!r}; it must be a whole number of at least {smallest}.")
    return number


@dataclass(frozen=True)
class Histogram:
    """Rounds of noisy counts: discrete Gaussian noise of parameter `scale` on every integer cell.

    *Guarantee:* priced exactly, up to the loss grid, if one record changes at most `cells` cells of a round, each by 1.
    Cells are priced as separate releases of sensitivity 1, never as one of sensitivity sqrt(cells): the discrete
    Gaussian is not rotation invariant. *Does not cover:* contributions other than 0 or 1 to a cell.

    Attributes:
        scale: parameter of the discrete Gaussian, in counts (close to its standard deviation).
        cells: most cells that one record changes in a round.
        rounds: releases of the whole histogram.
    """

    scale: float
    cells: int
    rounds: int

    def __post_init__(self) -> None:
        least, most = NOISE_RANGE
        normalise(self, scale=positive("scale", self.scale, most, least))
        normalise(self, cells=whole("cells", self.cells), rounds=whole("rounds", self.rounds))

    @property
    def compositions(self) -> int:
        """Distributions that are convolved."""
        return self.cells * self.rounds

    @property
    def rho(self) -> float:
        """zCDP parameter (Canonne, Kamath, Steinke 2020, "The discrete Gaussian for differential privacy")."""
        return self.compositions / (2 * self.scale**2)


@dataclass(frozen=True)
class IntegerSum:
    """Noisy sums of vectors on a fine integer grid: discrete Gaussian noise on every coordinate.

    Priced as a continuous Gaussian of very slightly less noise, which dominates it. Let s be the parameter of the noise
    in grid steps, r = 2 and t^2 = s^2 - r^2. Draw y from N(v, t^2) for an integer v, then an integer x with probability
    proportional to exp(-(x - y)^2 / 2 r^2). By Poisson's summation formula the second draw's normaliser is
    r sqrt(2 pi) (1 +- e) for every y, with e = 2.01 exp(-2 pi^2 r^2) < 1.1e-34; so x has the probability of the
    discrete Gaussian of parameter s around v, up to a factor 1 +- 2.1 e (Peikert 2010, "An efficient and parallel
    Gaussian sampler", theorem 3.1). A released sum is thus a randomised function of a Gaussian release, up to factors
    exp(+-2.1 e n) on probabilities over n coordinates and attempts: for n = 10^12, a loss below 1e-21, which the
    accountant's allowance on delta covers. With s >= 1000, t >= (1 - 2.1e-6) s.

    *Guarantee:* priced from above if one record moves the integer vector by at most the clip norm in L2 and the noise's
    parameter is at least `SMALLEST_GRID_SCALE` grid steps. *Does not cover:* a coarser grid; rounding of a record's
    vector that lets its norm exceed the clip norm (truncate toward zero).

    Attributes:
        noise_multiplier: parameter of the discrete Gaussian divided by the clip norm, both in grid steps.
        attempts: releases.
    """

    noise_multiplier: float
    attempts: int

    def __post_init__(self) -> None:
        least, most = NOISE_RANGE
        normalise(self, noise_multiplier=positive("noise_multiplier", self.noise_multiplier, most, least))
        normalise(self, attempts=whole("attempts", self.attempts))

    @property
    def compositions(self) -> int:
        """Distributions that are convolved: Gaussian pairs multiply to a Gaussian pair."""
        return 1

    @property
    def rho(self) -> float:
        """zCDP parameter; holds on any grid (Canonne, Kamath, Steinke 2020, theorem 14)."""
        return self.attempts / (2 * self.noise_multiplier**2)

    @property
    def gaussian_noise_multiplier(self) -> float:
        """Noise multiplier of the one continuous Gaussian that dominates all attempts together."""
        return self.noise_multiplier * math.sqrt((1 - (2 / SMALLEST_GRID_SCALE) ** 2) / self.attempts)


@dataclass(frozen=True)
class Training:
    """Steps of DP-SGD: a Poisson sample, a sum of clipped vectors, Gaussian noise on every coordinate.

    *Guarantee:* priced exactly, up to the loss grid, for real-valued Gaussian noise and samples that take every record
    independently with the same probability. *Does not cover:* shuffled or fixed-size batches; floating-point noise.

    Attributes:
        noise_multiplier: standard deviation of the noise divided by the bound on a record's vector.
        sampling_rate: probability in (0, 1] that a record is in a step's batch.
        steps: noisy sums released.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        least, most = NOISE_RANGE
        normalise(self, noise_multiplier=positive("noise_multiplier", self.noise_multiplier, most, least))
        normalise(self, sampling_rate=positive("sampling_rate", self.sampling_rate, 1.0))
        normalise(self, steps=whole("steps", self.steps))

    @property
    def compositions(self) -> int:
        """Distributions that are convolved."""
        return self.steps


Mechanism = Histogram | IntegerSum | Training


def normalise(target: object, **values: object) -> None:
    """Stores normalised values in a frozen dataclass, whose own assignment is barred."""
    for name, value in values.items():
        object.__setattr__(target, name, value)
