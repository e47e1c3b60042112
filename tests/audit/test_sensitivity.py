"""The brute force reaches the bounds on sound code, and sees code that passes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.audit import sensitivity
from sfumato.audit.sensitivity import brute_force
from sfumato.privacy.gradients.engine import Clipping


def test_bounds_are_met_and_kept(tmp_path: Path) -> None:
    found = brute_force(tmp_path)
    assert [(one.touch, one.unit) for one in found] == [
        (touch, unit) for unit in ("image", "person") for touch in ("noisy histogram", "noisy sum", "private training")
    ]
    assert [one.neighbours for one in found] == [12] * 3 + [5] * 3
    for one in found:
        assert not one.broken
        assert one.largest > 0.99 * one.bound


def test_more_than_the_bound_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = sensitivity.count_votes

    def twice(*arguments: Any) -> Any:
        return 2 * counted(*arguments)

    def unclipped(self: Clipping, norms: Tensor) -> Tensor:
        return torch.ones_like(norms)

    monkeypatch.setattr(sensitivity, "count_votes", twice)
    monkeypatch.setattr(Clipping, "weights", unclipped)
    found = {(one.touch, one.unit): one.broken for one in brute_force(tmp_path)}
    for unit in ("image", "person"):
        assert found["noisy histogram", unit]
        assert found["private training", unit]
        assert not found["noisy sum", unit]


def test_a_broken_sum_is_broken() -> None:
    nan = sensitivity._largest("image", [[np.zeros(2), np.array([np.nan]), np.zeros(1)]])
    assert [one.broken for one in nan] == [False, True, False]
