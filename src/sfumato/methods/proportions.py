"""How private training spends its computing: batch, steps and draws from public values.

The noise of one step, over a mean gradient of norm at most 1, is nu = z sqrt(P) / B for P parameters, batches of B and
noise multiplier z. With sampling rate q = B / N and T steps, z is about 1 / sqrt(ln(1 + x)) where x = mu^2 / (q^2 T)
and mu is the Gaussian-DP parameter that training may spend (the central limit of Poisson-sampled Gaussian steps; Bu et
al. 2020, "Deep Learning with Gaussian Differential Privacy"). It follows that

- what all steps together tell, T / nu^2, is at most (N mu)^2 / P, and batches of N mu / sqrt(x T) reach the share
  ln(1 + x) / x of it: larger ones buy computing time but hardly any less noise;
- at a large epsilon time runs out first: then the batch that x asks for decides, and the steps fill the time;
- at a small epsilon noise does: then steps stop where nu reaches what training still stands, and the time that is left
  goes into more draws of the same records, which cost no privacy.

The rule only chooses; what it chose is priced exactly by the plan.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SATURATION = 0.8
"""x at which batches are large enough: 73 % of what infinite ones would tell."""

LARGEST_NOISE = 0.3
"""nu beyond which steps were found to teach little (on stand-ins for private data)."""

LARGEST_RATE = 1 / 15
FEWEST_STEPS, MOST_STEPS = 160, 2000
MOST_DRAWS = 32
"""The published noise multiplicity; more was never found to help."""


class Proportions(NamedTuple):
    """What private training does.

    Attributes:
        batch: expected records a step.
        steps: of training.
        draws: rows of a record.
    """

    batch: int
    steps: int
    draws: int


def proportions(rows: float, size: int, mu: float, parameters: int) -> Proportions:
    """Spends about `rows` forward and backward rows, fewer where noise forbids to use them.

    Args:
        rows: records x steps x draws that time allows, at least 1.
        size: declared number of records, at least 1.
        mu: Gaussian-DP parameter that training may spend, above 0.
        parameters: trained, at least 1.
    """
    reach, useful = size * mu, math.log1p(SATURATION) / SATURATION
    bearable = min(max((LARGEST_NOISE * reach) ** 2 * useful / parameters, FEWEST_STEPS), MOST_STEPS)
    steps = min(SATURATION * (rows / reach) ** 2, bearable)
    batch = min(reach / math.sqrt(SATURATION * steps), LARGEST_RATE * size, rows / FEWEST_STEPS)
    steps = max(round(min(rows / max(batch, 1), bearable)), 1)
    draws = max(1, min(int(rows / (max(batch, 1) * steps)), MOST_DRAWS))
    # What whole draws leave of the time goes into the batch, which never harms.
    filled = min(rows / (steps * draws), LARGEST_RATE * size)
    return Proportions(max(round(max(batch, filled)), 1), steps, draws)


def noise(found: Proportions, size: int, mu: float, parameters: int) -> float:
    """About the norm of a step's noise over the largest gradient's (nu)."""
    x = (mu * size / found.batch) ** 2 / found.steps
    return math.sqrt(parameters / math.log1p(x)) / found.batch
