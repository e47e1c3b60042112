"""Attention: compiled and in PyTorch it is one function, and rows never meet in it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.nets.test_compiled import LEVELS
from torch import Tensor

from sfumato.nets.attention import LONGEST, attention, plain_attention, split

levels = pytest.mark.parametrize("level", LEVELS)


def results(qkv: Tensor, heads: int, causal: bool, gradient: Tensor) -> list[Tensor]:
    """Output and gradient."""
    copy = qkv.detach().requires_grad_()
    y = attention(copy, heads, causal)
    return [y.detach(), *torch.autograd.grad(y, copy, gradient.to(y.dtype))]


def exact(qkv: Tensor, heads: int, causal: bool, gradient: Tensor) -> list[Tensor]:
    """The same in double precision, by PyTorch."""
    copy = qkv.detach().double().requires_grad_()
    q, k, v = split(copy, heads)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(gradient.shape)
    return [y.detach(), *torch.autograd.grad(y, copy, gradient.double())]


@levels
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    positions=st.integers(1, 70),
    heads=st.integers(1, 3),
    size=st.sampled_from([16, 32, 48, 64, 96, 5]),
    causal=st.booleans(),
    half=st.booleans(),
    threads=st.integers(1, 3),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    seed=st.integers(0, 2**31),
)
@example(2, LONGEST, 2, 32, True, True, 1, 1.0, 0)
@example(2, LONGEST + 1, 2, 32, True, False, 1, 1.0, 0)
@example(3, 64, 2, 32, False, False, 2, 1.0, 0)
def test_values_and_gradients(
    level: str,
    rows: int,
    positions: int,
    heads: int,
    size: int,
    causal: bool,
    half: bool,
    threads: int,
    scale: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    qkv = (scale * torch.randn(rows, positions, 3 * heads * size)).to(torch.bfloat16 if half else torch.float32)
    gradient, before = torch.randn(rows, positions, heads * size), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_KERNELS", level)
        torch.set_num_threads(threads)
        found = results(qkv, heads, causal, gradient)
        torch.set_num_threads(before)
    rounded = gradient.to(qkv.dtype)
    compiled = level != "off" and size % 16 == 0 and positions <= LONGEST
    # In bfloat16, PyTorch rounds shares too. In float32 they are as exact as scores, of up to four times scale^2.
    most = (1e-2 if compiled else 0.2) if half else 1e-5 * max(1.0, scale**2 / 5)
    for one, other, like in zip(found, exact(qkv, heads, causal, rounded), (gradient, qkv), strict=True):
        assert one.dtype == qkv.dtype
        assert one.shape == like.shape
        error = (one.double() - other).norm() / (other.norm() + 1e-3)
        assert error < most


@levels
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_row_depends_on_itself_alone(
    level: str, causal: bool, dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, wherever it is in the batch and whatever the others hold."""
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    torch.manual_seed(0)
    qkv, gradient = torch.randn(5, 21, 6 * size).to(dtype), torch.randn(5, 21, 2 * size)
    found = results(qkv, 2, causal, gradient)
    for bad in (math.nan, math.inf, 1e38):
        spoilt, back = qkv.clone(), gradient.clone()
        spoilt[2] = back[2] = bad
        for one, other in zip(results(spoilt, 2, causal, back), found, strict=True):
            assert torch.equal(one[[0, 1, 3, 4]], other[[0, 1, 3, 4]])
            assert not torch.equal(one[2], other[2])
    order = torch.tensor([3, 0, 4])
    for one, other in zip(results(qkv[order], 2, causal, gradient[order]), found, strict=True):
        assert torch.equal(one, other[order])


@levels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_so(level: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a broken record is seen."""
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    torch.manual_seed(0)
    qkv, gradient = torch.randn(1, 20, 192).to(dtype), torch.ones(1, 20, 64)
    for part in range(3):
        spoilt = qkv.clone()
        spoilt[0, 7, 64 * part : 64 * (part + 1)] = math.nan
        y, by_qkv = results(spoilt, 2, True, gradient)
        assert y[0, 7].isnan().all()
        assert by_qkv.isnan().any()


@levels
def test_the_level_of_a_pass_is_that_of_its_forward_pass(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    qkv, gradient = torch.randn(2, 20, 192).bfloat16().requires_grad_(), torch.randn(2, 20, 64).bfloat16()
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    y = attention(qkv, 2, True)
    monkeypatch.setenv("SFUMATO_KERNELS", "avx2")
    (found,) = torch.autograd.grad(y, qkv, gradient)
    right = exact(qkv, 2, True, gradient)[1]
    assert (found - right).norm() < 0.05 * right.norm()


@pytest.mark.parametrize("width", [98, 99, 100])
def test_heads_that_do_not_divide_are_refused(width: int) -> None:
    with pytest.raises(RuntimeError, match="invalid for input"):
        attention(torch.randn(2, 5, width), 2, True)


@levels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores_do_not_overflow(level: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    torch.manual_seed(0)
    qkv, gradient = torch.randn(2, 30, 192), torch.randn(2, 30, 64).to(dtype)
    qkv[:, :, :128] *= 300
    qkv = qkv.to(dtype)
    y, by_qkv = results(qkv, 2, True, gradient)
    right = exact(qkv, 2, True, gradient)[0]
    assert (y - right).norm() < (1e-3 if dtype == torch.float32 else 0.05) * right.norm()
    assert by_qkv.isfinite().all()


def test_memory_of_any_order_no_rows_and_vmap() -> None:
    qkv = torch.randn(3, 96, 12).transpose(1, 2)
    assert torch.equal(attention(qkv, 2, True), attention(qkv.contiguous(), 2, True))
    assert attention(qkv[:0].contiguous(), 2, True).shape == (0, 12, 32)
    mapped = torch.vmap(lambda row: attention(row[None], 2, True)[0])(qkv.contiguous())
    assert torch.allclose(mapped, attention(qkv, 2, True), atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_what_pytorch_calls_attention(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 5)
    right = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert torch.allclose(plain_attention(q, k, v, causal), right, atol=1e-6)
    half = plain_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), causal)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), right, atol=0.05)


@pytest.mark.parametrize("queries", [1, 3, 7])
def test_attention_under_a_mask(queries: int) -> None:
    """A mask of one's own stands in place of the causal one; causal queries are the last ones."""
    q, (k, v) = torch.randn(2, 4, queries, 5), torch.randn(2, 2, 4, 7, 5)
    hidden = torch.rand(queries, 7) < 0.5
    hidden[:, 0] = False
    right = F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden)
    assert torch.allclose(plain_attention(q, k, v, True, hidden), right, atol=1e-6)
    seen = torch.ones(queries, 7, dtype=torch.bool).tril(7 - queries)
    assert torch.allclose(
        plain_attention(q, k, v, True), F.scaled_dot_product_attention(q, k, v, attn_mask=seen), atol=1e-6
    )
