"""Class shares: bought with one vote a record, and turned into labels exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.methods.shares import ballots, labels_by, request, shares_from
from sfumato.privacy.draws import Draws
from sfumato.privacy.histogram import ABSTAIN
from sfumato.privacy.records import Rows


def test_a_record_votes_for_its_class_alone() -> None:
    labels = torch.tensor([2, -1, 0])
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    rows = Rows(images, labels, torch.ones(3, dtype=torch.bool), Draws(bytes(32), "test", 0, [bytes(16)] * 3))
    assert ballots(rows).tolist() == [[2], [ABSTAIN], [0]]
    assert request().cells == 1


def test_counts_below_zero_are_none_and_noise_alone_is_uniform() -> None:
    assert shares_from(np.array([30, -4, 10])) == [0.75, 0.0, 0.25]
    assert shares_from(np.array([-3, -4])) == [0.5, 0.5]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=12).filter(any), st.integers(1, 500), st.integers(0, 9))
def test_labels_have_the_shares_up_to_rounding(weights: list[int], count: int, seed: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    labels = labels_by(shares, count, seed)
    found = torch.bincount(labels, minlength=len(shares)).numpy()
    assert len(labels) == count
    assert np.abs(found - np.array(shares) * count).max() < 1 + 1e-9
    assert torch.equal(labels, labels_by(shares, count, seed))


def test_labels_come_in_random_order() -> None:
    labels = labels_by([0.5, 0.5], 100, 1)
    assert 30 < int((labels[1:] != labels[:-1]).sum()) < 70
    assert not torch.equal(labels, labels_by([0.5, 0.5], 100, 2))
    assert labels_by([0.0, 1.0], 5, 0).tolist() == [1] * 5


def test_a_share_of_nothing_draws_nothing() -> None:
    assert pytest.approx(1.0) == sum(shares_from(np.array([1, 2, 3])))
