"""What the published accounting of PrivImage asks for, beside ours: Renyi accounting over query and training.

PrivImage and DPImageBench add the Renyi curves of a Gaussian query and of Poisson-sampled training and search for the
training noise that meets epsilon. Privacy loss distributions, which this package prices with, need less noise for the
same guarantee; a forecast shows both, so that a reader can compare a run with the papers.
"""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.errors import UserError
from sfumato.privacy import accounting
from sfumato.privacy.accounting import Training

QUERY_MULTIPLIER = 50.0
"""Noise multiplier of DPImageBench's semantic query; it is all but free."""

_TOLERANCE = 1e-3


def renyi_multiplier(
    sampling_rate: float,
    steps: int,
    epsilon: float,
    delta: float,
    query_multiplier: float | None = QUERY_MULTIPLIER,
    others: Sequence[accounting.Mechanism] = (),
) -> float:
    """Noise multiplier of training by Renyi accounting, to a relative 0.1 % and from above.

    Args:
        sampling_rate: of training, in (0, 1].
        steps: of training.
        epsilon: of query and training together.
        delta: likewise.
        query_multiplier: noise of one Gaussian query over its sensitivity; None for no query.
        others: what else the run asks of the records.

    Raises:
        UserError: a number is out of range, or no noise multiplier up to 1000 meets epsilon.
    """
    query = () if query_multiplier is None else (Training(query_multiplier, 1.0, 1),)

    def price(multiplier: float) -> float:
        return accounting.rdp_epsilon((*query, *others, Training(multiplier, sampling_rate, steps)), delta)

    low, high = 0.3, 0.6
    while price(high) > epsilon:
        low, high = high, 2 * high
        if high > 1000:
            raise UserError(f"epsilon {epsilon:g} is not met by any noise; give a larger one.")
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if price(middle) <= epsilon else (middle, high)
    return high
