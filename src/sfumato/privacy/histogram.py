"""Touch 1: a noisy histogram. A record adds 1 to at most k distinct cells; counts get discrete Gaussian noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import InternalError
from sfumato.privacy.features import Features, Voters
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import HistogramTouch
from sfumato.privacy.records import PrivateRecords, Rows

Votes = Callable[[Rows], Tensor]
VotesOfFeatures = Callable[[Voters], Tensor]
ABSTAIN = -1
CHUNK = 256


def count_votes(
    records: PrivateRecords | Features,
    touch: HistogramTouch,
    attempt: int,
    votes: Votes | VotesOfFeatures,
    cells: int,
) -> NDArray[np.int64]:
    """The un-noised histogram, int64 `(cells,)`. Private: for `noisy_histogram` and the sensitivity tests."""
    counts = np.zeros(cells, dtype=np.int64)
    for ballot, present in _ballots(records, touch, attempt, votes):
        if ballot.dtype != torch.int64 or ballot.shape != (len(present), touch.cells):
            raise InternalError(f"votes must be int64 cell numbers of shape (records, {touch.cells})")
        ballot = torch.where(present[:, None], ballot, ABSTAIN)
        ballot = torch.where((ballot >= 0) & (ballot < cells), ballot, ABSTAIN)
        ballot = ballot.sort(dim=1).values
        ballot[:, 1:][ballot[:, 1:] == ballot[:, :-1]] = ABSTAIN  # a cell gets at most 1 from a record
        counts += np.bincount(ballot[ballot != ABSTAIN].numpy(), minlength=cells)
    return counts


def _ballots(
    records: PrivateRecords | Features, touch: HistogramTouch, attempt: int, votes: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the records of a chunk vote for, and which of them there are."""
    if isinstance(records, Features):
        for voters in records._chunks():
            with torch.inference_mode():
                ballot = votes(voters)
            yield ballot, voters.present
    else:
        for rows, _ in records._chunks(np.arange(records._size()), CHUNK, 1, touch.name, attempt):
            with torch.inference_mode():
                ballot = votes(rows)
            yield ballot, rows.present


def noisy_histogram(
    records: PrivateRecords | Features,
    touch: HistogramTouch,
    attempt: int,
    votes: Votes | VotesOfFeatures,
    cells: int,
    noise: Noise,
) -> NDArray[np.int64]:
    """Counts votes and adds discrete Gaussian noise of scale `touch.scale` to every cell.

    Args:
        records: the private records, or their features.
        touch: its plan: at most `touch.cells` cells per record.
        attempt: which of the planned rounds this is; part of the key of per-record randomness.
        votes: per-record function from a chunk of R records (one image each, or features) to int64 `(R, touch.cells)`
            cell numbers; -1 abstains. Ties must go to the lowest number.
        cells: number of cells, public.
        noise: where the noise comes from.

    Returns:
        int64 `(cells,)`, possibly negative.

    Raises:
        InternalError: the function returned anything else than cell numbers.

    Guarantee:
        Adding or removing one record changes the un-noised counts in at most `touch.cells` cells, each by exactly 1.
        Cell numbers out of range, repeated by one record, or cast for a null contribution count as abstentions.

    Does not cover:
        A function in which the vote of one record depends on another; it must treat rows one by one.
    """
    counts = count_votes(records, touch, attempt, votes, cells)
    return counts + noise.discrete_gaussian(cells, touch.scale)
