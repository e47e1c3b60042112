"""Threads on one core each: the number of PyTorch's threads is theirs alone, and comes back."""

from __future__ import annotations

import pytest
import torch

from sfumato._threads import one_core_each


def test_each_computes_on_one_core_and_the_rest_is_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_core_each() as pool:
            assert set(pool.map(lambda _: torch.get_num_threads(), range(12))) == {1}
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError), one_core_each() as pool:
            list(pool.map(lambda number: 1 // number, range(3)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
