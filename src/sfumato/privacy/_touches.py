"""Touches as a plan holds them, and the requests from which calibration makes them."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from sfumato.errors import UserError
from sfumato.privacy._mechanisms import Histogram, IntegerSum, Training, normalise, positive, whole

Clipping = Literal["flat", "automatic"]

GROUPED_SLACK = 2 * 1.01 * 8 * 2.0**-24
"""Of a record that is added in a group: at most eight in float32, each off by 8 units of roundoff; twice that, because
the sums of two neighbouring data sets differ by both of their errors."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9 _-]{0,39}")


@dataclass(frozen=True)
class HistogramTouch:
    """Noisy histograms, one a round.

    *Guarantee:* `mechanism` prices all rounds if one record changes at most `cells` cells of a round by exactly 1 each.
    *Does not cover:* how the counts are made; `histogram.py` sees to it.

    Attributes:
        name: unique in the plan.
        cells: most cells that one record changes in a round.
        rounds: releases, spare ones included.
        scale: parameter of the discrete Gaussian noise on every count.
    """

    name: str
    cells: int
    rounds: int
    scale: float

    kind: ClassVar[str] = "histogram"

    def __post_init__(self) -> None:
        check_name(self.name)
        normalise(self, **dataclasses.asdict(self.mechanism))

    @property
    def attempts(self) -> int:
        """Releases that are charged."""
        return self.rounds

    @property
    def noise_multiplier(self) -> float:
        """Noise over the change in one cell, which is 1."""
        return self.scale

    def after(self, attempts: int) -> Histogram:
        """The mechanism of so many rounds."""
        return Histogram(self.scale, self.cells, attempts)

    @property
    def mechanism(self) -> Histogram:
        """The mechanism of all rounds."""
        return self.after(self.rounds)


@dataclass(frozen=True)
class SumTouch:
    """Noisy sums of clipped vectors on a fine integer grid.

    *Guarantee:* `mechanism` prices all attempts if one record moves the sum by at most `clip_norm` in L2, on a grid as
    fine as `IntegerSum` asks. *Does not cover:* how the sums are made; `sums.py` sees to it.

    Attributes:
        name: unique in the plan.
        clip_norm: bound on the L2 norm of a record's vector, in the vector's own units.
        attempts: releases, spare ones included.
        noise_multiplier: parameter of the discrete Gaussian noise over `clip_norm`.
    """

    name: str
    clip_norm: float
    attempts: int
    noise_multiplier: float

    kind: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        check_name(self.name)
        normalise(self, clip_norm=positive("clip_norm", self.clip_norm), **dataclasses.asdict(self.mechanism))

    def after(self, attempts: int) -> IntegerSum:
        """The mechanism of so many attempts."""
        return IntegerSum(self.noise_multiplier, attempts)

    @property
    def mechanism(self) -> IntegerSum:
        """The mechanism of all attempts."""
        return self.after(self.attempts)


@dataclass(frozen=True)
class TrainingTouch:
    """Private training: noisy sums of clipped per-record gradients on Poisson samples.

    *Guarantee:* `mechanism` prices all steps if one record moves a step's computed sum by at most `clip_norm` (1 +
    `slack`) in L2, and the noise's standard deviation is `noise_multiplier` x `clip_norm` x (1 + `slack`). *Does not
    cover:* how the sums are made; `training.py` sees to it.

    Attributes:
        name: unique in the plan.
        sampling_rate: probability in (0, 1] that a record is in a step's batch.
        steps: noisy sums released.
        noise_multiplier: standard deviation of the noise over the bound on a record's share of the sum.
        clip_norm: bound on the L2 norm of a record's gradient in exact arithmetic.
        rows: draws of one record whose mean loss is differentiated.
        slack: how far rounding may take the computed share of a record beyond `clip_norm`, relative; in [0, 1).
        clipping: rule that scales a gradient into the ball of radius `clip_norm`.
        grouped: records of a step that may be added up in groups in single precision; `slack` covers it.
    """

    name: str
    sampling_rate: float
    steps: int
    noise_multiplier: float
    clip_norm: float
    rows: int
    slack: float
    clipping: Clipping = "automatic"
    grouped: int = 0

    kind: ClassVar[str] = "training"

    def __post_init__(self) -> None:
        check_name(self.name)
        normalise(self, **dataclasses.asdict(self.mechanism))
        normalise(self, clip_norm=positive("clip_norm", self.clip_norm), rows=whole("rows", self.rows))
        normalise(self, slack=0.0 if self.slack == 0 else positive("slack", self.slack))
        if self.slack >= 1:
            raise UserError(f"slack is {self.slack!r}; it must be at least 0 and below 1.")
        if self.clipping not in get_args(Clipping):
            raise UserError(f"clipping is {self.clipping!r}; it must be flat or automatic.")
        normalise(self, grouped=0 if self.grouped == 0 else whole("grouped", self.grouped))
        if self.slack < self.grouped * GROUPED_SLACK:
            raise UserError(
                f"slack is {self.slack!r}; it does not cover the rounding of {self.grouped} grouped records."
            )

    @property
    def attempts(self) -> int:
        """Noisy sums that are charged."""
        return self.steps

    def after(self, attempts: int) -> Training:
        """The mechanism of so many steps."""
        return Training(self.noise_multiplier, self.sampling_rate, attempts)

    @property
    def mechanism(self) -> Training:
        """The mechanism of all steps."""
        return self.after(self.steps)


Touch = HistogramTouch | SumTouch | TrainingTouch


@dataclass(frozen=True)
class HistogramRequest:
    """A `HistogramTouch` whose noise is still to be found; `share` of mu^2 in (0, 1), or None for the main touch.

    *Guarantee:* none before it is calibrated. *Does not cover:* as the touch.
    """

    name: str
    cells: int
    rounds: int
    share: float | None = None

    def at(self, noise: float) -> HistogramTouch:
        """The touch with this scale."""
        return HistogramTouch(self.name, self.cells, self.rounds, noise)


@dataclass(frozen=True)
class SumRequest:
    """A `SumTouch` whose noise is still to be found; `share` of mu^2 in (0, 1), or None for the main touch.

    *Guarantee:* none before it is calibrated. *Does not cover:* as the touch.
    """

    name: str
    clip_norm: float
    attempts: int
    share: float | None = None

    def at(self, noise: float) -> SumTouch:
        """The touch with this noise multiplier."""
        return SumTouch(self.name, self.clip_norm, self.attempts, noise)


@dataclass(frozen=True)
class TrainingRequest:
    """A `TrainingTouch` whose noise is still to be found; `share` of mu^2 in (0, 1), or None for the main touch.

    *Guarantee:* none before it is calibrated. *Does not cover:* as the touch.
    """

    name: str
    sampling_rate: float
    steps: int
    clip_norm: float
    rows: int = 1
    slack: float = 1e-6
    clipping: Clipping = "automatic"
    grouped: int = 0
    share: float | None = None

    def at(self, noise: float) -> TrainingTouch:
        """The touch with this noise multiplier."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name != "share"}
        return TrainingTouch(noise_multiplier=noise, **fields)


Request = HistogramRequest | SumRequest | TrainingRequest


def check_name(name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a touch; a name is a letter and up to 39 more letters, digits, spaces, - or _."
        )
