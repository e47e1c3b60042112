"""Compiled linear layers of large networks: norms, sums and groups, on inputs made to break them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sfumato.privacy.gradients.kernels import Linear
from tests.privacy.gradients.kernel_cases import (
    Guarded,
    Kind,
    added,
    attacks,
    flat,
    kinds,
    levels,
    line,
    pairs,
    squares_of,
)


@kinds
@settings(max_examples=60, deadline=None)
@given(
    records=st.integers(1, 11),
    positions=st.integers(1, 70),
    widths=pairs(st.integers(1, 70), st.integers(1, 70)),
    single=st.booleans(),
    bias=st.booleans(),
    gram=st.booleans(),
    grouped=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(9, 16, (32, 64), True, True, True, True, 0)
@example(9, 1, (64, 32), False, True, True, True, 0)
@example(2, 17, (48, 16), False, True, True, True, 0)
def test_linear_layers(
    kind: Kind,
    records: int,
    positions: int,
    widths: tuple[int, int],
    single: bool,
    bias: bool,
    gram: bool,
    grouped: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    a = torch.randn(records, positions, widths[0])
    a = a if single or kind.dtype == torch.float32 else a.bfloat16()
    layer = line(a, torch.randn(records, positions, widths[1]), bias, kind.dtype)
    expected, squares = flat(layer), squares_of(layer, gram, kind.level)
    norms = expected.norm(dim=1)
    sizes = (layer.activation.to(kind.dtype).double().norm(dim=2) * layer.gradient.double().norm(dim=2)).sum(1)
    assert (squares.sqrt() >= norms * (1 - 1e-5 * sizes / norms)).all()
    assert (squares.sqrt() <= 1.01 * norms + 1e-5 * sizes).all()
    weights = torch.rand(records, dtype=torch.float64) + 0.1
    found, right = added(layer, weights, kind.level, grouped), weights @ expected
    if not grouped:
        assert (found - right).norm() <= 1e-5 * (weights * sizes).sum()
        return
    assert (found - right).norm() <= 2**-6 * (weights * sizes).sum()
    assert found.norm() <= (weights * squares.sqrt()).sum() * (1 + 1e-5)
    eight = torch.ones(records, dtype=torch.float64) - 2.0**-7  # as 8 bits hold it, rounding down is none
    sizes = sizes + layer.gradient.double().norm(dim=2).sum(1)  # the bias is added with the weights as they are
    assert (added(layer, eight * (1 + 2.0**-20), kind.level, True) - eight @ expected).norm() <= 1e-5 * sizes.sum()


@kinds
@pytest.mark.parametrize("grouped", [False, True])
def test_sums_are_added_to_what_is_there(kind: Kind, grouped: bool) -> None:
    torch.manual_seed(0)
    layer = line(torch.randn(11, 9, 50), torch.randn(11, 9, 35), dtype=kind.dtype)
    start, weights = torch.randn(1 + 50 * 35 + 35, dtype=torch.float64), torch.rand(11, dtype=torch.float64)
    total = start.clone()
    layer.add(weights, total, Guarded(), kind.level, grouped)
    assert torch.allclose(total[1:] - start[1:], added(layer, weights, kind.level, grouped), rtol=0, atol=1e-12)
    nobody = added(layer, torch.zeros(11, dtype=torch.float64), kind.level, grouped)
    assert not nobody.any()


@kinds
def test_half_trained_linear_layers(kind: Kind) -> None:
    torch.manual_seed(0)
    layer = line(torch.randn(3, 5, 20), torch.randn(3, 5, 33), dtype=kind.dtype)
    expected = flat(layer)
    only_bias = layer._replace(weight_at=-1, bias_at=0)
    total = torch.zeros(33, dtype=torch.float64)
    only_bias.add(torch.ones(3, dtype=torch.float64), total, Guarded(), kind.level)
    assert total.any()
    assert torch.allclose(total, expected[:, 660:].sum(0), rtol=1e-5, atol=1e-5)
    assert torch.allclose(squares_of(only_bias, True, kind.level), expected[:, 660:].square().sum(1), rtol=1e-5)


@kinds
@pytest.mark.parametrize("positions", [1, 2, 7, 15, 16, 17, 64, 256])
def test_no_norm_is_below_what_is_added(kind: Kind, positions: int) -> None:
    torch.manual_seed(positions)
    one = torch.ones(1, dtype=torch.float64)
    charged = 8 * 2.0**-24  # a record of a group, for rounding
    inside = kind == (torch.bfloat16, 2) and positions <= 16
    room = 0.0 if inside or kind.dtype == torch.float32 else charged
    for name, (a, g) in attacks(positions, 40).items():
        for scale, back in (
            (1.0, 1.0),
            (1e-30, 1.0),
            (1.0, 1e-30),
            (1e-18, 1e-18),
            (1e15, 1e15),
            (1e30, 1e-30),
            (1e-30, 1e30),
            (1.0, 1e30),
        ):
            for bias in (False, True):
                layer = line((a * scale).to(kind.dtype), g * back, bias, kind.dtype)
                for gram in (True, False):
                    norm = float(squares_of(layer, gram, kind.level).sqrt()) * (1 + 1e-9)
                    if math.isinf(norm) or math.isnan(norm):
                        continue  # not added
                    where = f"{name}, {scale}, {back}, {gram}"
                    assert float(added(layer, one, kind.level).norm()) <= norm, where
                    for weight in (1.0, 0.7, 1 / norm if norm > 1e-30 else 1.0):
                        found = float(added(layer, one * weight, kind.level, grouped=True).norm())
                        assert found <= weight * norm * (1 + room), where + f", weight {weight}"
                if name == "ordinary" and scale == back == 1:
                    assert norm <= 1.01 * float(flat(layer).norm())


@kinds
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("positions", [3, 40])
def test_weight_zero_is_not_read(kind: Kind, grouped: bool, bad: float, positions: int) -> None:
    torch.manual_seed(0)
    a, g = torch.randn(11, positions, 50), torch.randn(11, positions, 35)
    weights = torch.rand(11, dtype=torch.float64)
    weights[4] = 0
    expected = added(line(a, g, dtype=kind.dtype), weights, kind.level, grouped)
    clean = squares_of(line(a, g, dtype=kind.dtype), True, kind.level)
    a[4], g[4] = bad, bad
    assert torch.equal(added(line(a, g, dtype=kind.dtype), weights, kind.level, grouped), expected)
    others = torch.arange(11) != 4
    for gram in (True, False):
        squares = squares_of(line(a, g, dtype=kind.dtype), gram, kind.level)
        assert not squares[4] < 1e70
        assert not gram or torch.equal(squares[others], clean[others])


@kinds
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("widths", [(160, 128), (96, 200), (320, 288)])
def test_more_records_than_a_cache_holds(kind: Kind, grouped: bool, widths: tuple[int, int]) -> None:
    """They are added in spans, the last of them shorter, and some records of each are left out."""
    torch.manual_seed(0)
    layer = line(torch.randn(43, 256, widths[0]), torch.randn(43, 256, widths[1]), dtype=kind.dtype)
    weights = torch.randint(1, 8, (43,)).double() / 8
    weights[::7] = 0
    found, right = added(layer, weights, kind.level, grouped), weights @ flat(layer)
    assert (found - right).norm() <= 1e-5 * right.norm()


@kinds
@pytest.mark.parametrize("grouped", [False, True])
def test_a_record_does_not_move_another(kind: Kind, grouped: bool) -> None:
    """Weights that single out one record: the others' values do not reach a bit of it."""
    torch.manual_seed(0)
    a, g = torch.randn(11, 9, 50), torch.randn(11, 9, 35)
    for record in (0, 5, 10):
        weights = (torch.arange(11) == record).double()
        before = added(line(a, g, dtype=kind.dtype), weights, kind.level, grouped)
        others = torch.arange(11) != record
        changed, back = a.clone(), g.clone()
        changed[others], back[others] = 1e3 * torch.randn(10, 9, 50), torch.randn(10, 9, 35)
        assert torch.equal(added(line(changed, back, dtype=kind.dtype), weights, kind.level, grouped), before)


@levels
@pytest.mark.parametrize("positions", [5, 16, 17, 40])
def test_groups_err_by_no_more_than_they_are_charged(level: int, positions: int) -> None:
    """At most eight records a group, each of norm 1: less than 8 units of roundoff a record."""
    torch.manual_seed(0)
    records = 64
    layer = line(torch.randn(records, positions, 48), torch.randn(records, positions, 40), bias=False)
    weights = (1 / squares_of(layer, True, level).sqrt()).float().double()
    bits = (weights * (1 - 2.0**-23)).float().view(torch.int32) & -65536
    rounded = bits.view(torch.float32).double() if level == 2 and positions <= 16 else weights
    assert (rounded <= weights).all()
    assert (rounded > 0.99 * weights).all()
    error = (added(layer, weights, level, grouped=True) - rounded @ flat(layer)).norm()
    assert float(error) < records * 8 * 2.0**-24
    # records that are alike add up worst: the sum of a group has the norm of all its records
    alike = layer._replace(
        activation=layer.activation[:1].repeat(records, 1, 1), gradient=layer.gradient[:1].repeat(records, 1, 1)
    )
    first = weights[:1].repeat(records)
    error = (added(alike, first, level, grouped=True) - rounded[0] / weights[0] * added(alike, first, level)).norm()
    assert float(error) < records * 8 * 2.0**-24


@levels
@pytest.mark.parametrize("nearness", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("positions", [6, 16, 18, 40])
def test_a_share_is_formed_alike_in_a_group_and_without_room_for_one(
    level: int, positions: int, nearness: float
) -> None:
    """Also where positions cancel, and rounding is most of what is left of a gradient."""
    torch.manual_seed(0)
    records = 20
    activation = 1 + nearness * torch.randn(records, positions, 48)
    signs = torch.where(torch.arange(positions) % 2 == 0, 1.0, -1.0)[None, :, None]
    layer = line(activation, signs * (1 + nearness * torch.randn(records, positions, 40)), bias=False)
    weights = 1 / squares_of(layer, True, level).clamp(min=1e-12).sqrt()
    alone = torch.stack([
        added(Linear(layer.activation[n : n + 1], layer.gradient[n : n + 1], 1, -1), weights[n : n + 1], level, True)
        for n in range(records)
    ])  # fmt: skip
    assert float((added(layer, weights, level, True, room=False) - alone.sum(0)).norm()) < records * 2.0**-22
    assert float((added(layer, weights, level, True) - alone.sum(0)).norm()) < records * 9 * 2.0**-24
