"""Compiled layer norms and embeddings, against double precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.privacy.gradients import kernels
from tests.privacy.gradients.kernel_cases import (
    attacks,
    levels,
)


@levels
@settings(max_examples=30, deadline=None)
@given(
    records=st.integers(1, 4),
    positions=st.integers(1, 9),
    eights=st.integers(1, 20),
    offset=st.sampled_from([0.0, 100.0]),
    half=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_norm_gradients(
    level: int, records: int, positions: int, eights: int, offset: float, half: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    width = 8 * eights
    x, g = torch.randn(records, positions, width) + offset, torch.randn(records, positions, width)
    x, g = (value.bfloat16() if half else value for value in (x, g))
    found, squares = kernels.norm_gradients(x, g, 1e-5, level)
    normal = F.layer_norm(x.double(), (width,), eps=1e-5)
    expected = torch.cat(((g.double() * normal).sum(1), g.double().sum(1)), 1)
    assert (found - expected).norm() <= (1e-6 + 1e-6 * offset) * math.sqrt(positions) * expected.norm() + 1e-6
    assert torch.allclose(squares.sqrt(), found.double().norm(dim=1), rtol=1e-12)
    weights, start = torch.rand(records, dtype=torch.float64), torch.randn(2 * width + 1, dtype=torch.float64)
    weights[0] = 0
    totals = []
    for _ in range(2):
        total = start.clone()
        kernels.rows_add(found, weights, total[1:], level)
        totals.append(total)
        g[0], x[0] = math.nan, math.inf
        others = found[1:].clone()
        found, squares = kernels.norm_gradients(x, g, 1e-5, level)
        assert not squares[0].isfinite()
        assert torch.equal(found[1:], others)
    assert torch.equal(*totals)
    assert totals[0][0] == start[0]
    assert torch.allclose(totals[0][1:], start[1:] + weights[1:] @ found[1:].double(), rtol=1e-12)


@levels
@settings(max_examples=40, deadline=None)
@given(
    records=st.integers(1, 4),
    positions=st.integers(1, 12),
    vocabulary=st.integers(1, 5),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_embeddings(level: int, records: int, positions: int, vocabulary: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    tokens, g = torch.randint(vocabulary, (records, positions)), torch.randn(records, positions, width)
    exact = torch.zeros(records, vocabulary, width, dtype=torch.float64)
    exact.scatter_add_(1, tokens[:, :, None].expand_as(g), g.double())
    squares, sizes = kernels.embedding_squares(tokens, g, level), g.double().norm(dim=2).sum(1)
    assert ((squares.sqrt() - exact.flatten(1).norm(dim=1)).abs() <= 1e-6 * sizes).all()
    weights = torch.rand(records, dtype=torch.float64)
    weights[0] = 0
    start = torch.randn(1 + vocabulary * width + 1, dtype=torch.float64)
    totals = []
    for bad in (1.0, math.nan):
        total = start.clone()
        g[0] *= bad
        kernels.embedding_add(tokens, g, weights, total[1:-1], level)
        totals.append(total)
    assert torch.equal(*totals)
    assert torch.equal(totals[0][[0, -1]], start[[0, -1]])
    error = (totals[0] - start)[1:-1].view(vocabulary, width) - torch.tensordot(weights, exact, 1)
    assert error.norm() <= 1e-6 * (1 + sizes[1:].sum())
    assert torch.equal(kernels.embedding_squares(tokens, g, level)[1:], squares[1:])


@levels
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_no_norm_of_an_embedding_is_below_what_is_added(level: int, scale: float) -> None:
    """One token throughout, and output gradients that cancel."""
    torch.manual_seed(0)
    for positions in (2, 17, 256):
        g = attacks(positions, 24)["near duplicates"][1] * scale
        tokens, total = torch.zeros(1, positions, dtype=torch.long), torch.zeros(3 * 24, dtype=torch.float64)
        kernels.embedding_add(tokens, g, torch.ones(1, dtype=torch.float64), total, level)
        norm = float(kernels.embedding_squares(tokens, g, level).sqrt())
        assert 0 < float(total.norm()) <= norm * (1 + 1e-12)


@levels
def test_norm_gradients_of_constant_inputs_are_finite(level: int) -> None:
    x, g = torch.full((2, 3, 8), 1e4), torch.randn(2, 3, 8)
    found, squares = kernels.norm_gradients(x, g, 1e-5, level)
    assert found.isfinite().all()
    assert squares.isfinite().all()
    assert found[:, :8].abs().max() < 1e-2 * g.abs().max() * 3
