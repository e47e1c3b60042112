"""A record's randomness is its own."""

from __future__ import annotations

import torch
from scipy import stats

from sfumato.privacy.draws import Draws

KEY = b"k" * 32
NAMES = [bytes([number]) * 16 for number in range(64)]


def test_a_draw_does_not_depend_on_the_company() -> None:
    everyone = Draws(KEY, "touch", 3, NAMES)
    fewer = Draws(KEY, "touch", 3, NAMES[:5] + NAMES[6:])
    for kind in ("normal", "uniform"):
        whole, part = getattr(everyone, kind)("x", 4, 3), getattr(fewer, kind)("x", 4, 3)
        assert torch.equal(torch.cat((whole[:5], whole[6:])), part)
    assert torch.equal(Draws(KEY, "touch", 3, NAMES[9:10]).normal("x", 5)[0], everyone.normal("x", 5)[9])


def test_key_touch_step_name_and_record_all_change_a_draw() -> None:
    base = Draws(KEY, "touch", 3, NAMES[:1]).normal("x", 8)
    others = [
        Draws(b"l" * 32, "touch", 3, NAMES[:1]).normal("x", 8),
        Draws(KEY, "other", 3, NAMES[:1]).normal("x", 8),
        Draws(KEY, "touch", 4, NAMES[:1]).normal("x", 8),
        Draws(KEY, "touch", 3, NAMES[:1]).normal("y", 8),
        Draws(KEY, "touch", 3, NAMES[1:2]).normal("x", 8),
    ]
    assert all(not torch.equal(base, other) for other in others)


def test_laws() -> None:
    draws = Draws(KEY, "touch", 1, [number.to_bytes(16, "big") for number in range(2_000)])
    assert stats.kstest(draws.normal("n", 21).flatten().numpy(), "norm").pvalue > 1e-6
    assert stats.kstest(draws.uniform("u", 20).flatten().numpy(), "uniform").pvalue > 1e-6
    picks = draws.integers("i", torch.full((2_000,), 5))
    assert stats.chisquare(torch.bincount(picks, minlength=5).numpy()).pvalue > 1e-6
    assert draws.integers("i", torch.zeros(2_000, dtype=torch.int64)).max() == 0


def test_shapes() -> None:
    draws = Draws(KEY, "touch", 1, NAMES[:7])
    assert draws.normal("x", 2, 3, 5).shape == (7, 2, 3, 5)
    assert draws.uniform("x").shape == (7,)
    assert draws.normal("x", 2).dtype == torch.float32
