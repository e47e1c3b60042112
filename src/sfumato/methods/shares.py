"""How many images of each class a release holds: as declared, or as one noisy histogram of labels says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.privacy.histogram import ABSTAIN
from sfumato.privacy.plan import HistogramRequest
from sfumato.privacy.records import Rows

CLASS_SHARES = "class shares"
_SHARE = 0.01
"""Of mu^2: at epsilon 1 the counts of classes are then wrong by about 50, enough for shares of a thousand records."""


def request() -> HistogramRequest:
    """The touch; one of its two attempts is a spare."""
    return HistogramRequest(CLASS_SHARES, cells=1, rounds=2, share=_SHARE)


def ballots(rows: Rows) -> Tensor:
    """The per-record function of the touch: a record votes for its class, one of no declared class abstains."""
    return torch.where(rows.labels < 0, ABSTAIN, rows.labels)[:, None]


def shares_from(noisy: NDArray[np.int64]) -> list[float]:
    """Shares of the classes from noisy counts, which may be negative; equal ones if noise is all there is."""
    counts = np.maximum(noisy, 0).astype(np.float64)
    if not counts.any():
        counts += 1
    return [float(share) for share in counts / counts.sum()]


def labels_by(shares: Sequence[float], count: int, seed: int) -> Tensor:
    """Labels int64 `(count,)` in random order, whose numbers differ from `shares` by rounding alone.

    Args:
        shares: of the classes, summing to 1.
        count: labels.
        seed: of the order, public.
    """
    exact = np.asarray(shares) * count
    numbers = np.floor(exact).astype(np.int64)
    numbers[np.argsort(numbers - exact, kind="stable")[: count - int(numbers.sum())]] += 1
    labels = torch.arange(len(numbers)).repeat_interleave(torch.from_numpy(numbers))
    return labels[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
