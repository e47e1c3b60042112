"""Cross-entropy: compiled and in PyTorch it is one function, and rows never meet in it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.nets.test_compiled import LEVELS
from torch import Tensor

from sfumato.nets.entropy import mean_cross_entropy

levels = pytest.mark.parametrize("level", LEVELS)


def results(logits: Tensor, tokens: Tensor, gradient: Tensor) -> list[Tensor]:
    """Losses and gradient."""
    copy = logits.detach().requires_grad_()
    losses = mean_cross_entropy(copy, tokens)
    return [losses.detach(), *torch.autograd.grad(losses, copy, gradient)]


def exact(logits: Tensor, tokens: Tensor, gradient: Tensor) -> list[Tensor]:
    """The same in double precision, from the definition."""
    shares = logits.double().softmax(-1)
    there = torch.nn.functional.one_hot(tokens, logits.shape[-1]).double()
    losses = -(shares.log() * there).sum(-1).mean(1)
    return [losses, (shares - there) * gradient[:, None, None].double() / tokens.shape[1]]


@levels
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4),
    positions=st.integers(1, 9),
    vocabulary=st.sampled_from([16, 32, 80, 512, 5, 40]),
    half=st.booleans(),
    threads=st.integers(1, 3),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
    offset=st.sampled_from([0.0, -300.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients(
    level: str,
    rows: int,
    positions: int,
    vocabulary: int,
    half: bool,
    threads: int,
    scale: float,
    offset: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    logits = (scale * torch.randn(rows, positions, vocabulary) + offset).to(torch.bfloat16 if half else torch.float32)
    tokens, gradient = torch.randint(0, vocabulary, (rows, positions)), torch.randn(rows)
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_KERNELS", level)
        torch.set_num_threads(threads)
        losses, by_logits = results(logits, tokens, gradient)
        torch.set_num_threads(before)
    right, by_right = exact(logits, tokens, gradient)
    assert losses.dtype == torch.float32
    assert by_logits.dtype == logits.dtype
    rounding = 1e-6 * (1 + abs(offset) + 5 * scale)
    assert (losses - right).abs().max() <= rounding
    most = gradient.abs().max() / positions
    assert (by_logits - by_right).abs().max() <= (4e-3 if half else rounding) * most


@levels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_depends_on_itself_alone(level: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, wherever it is in the batch and whatever the others hold."""
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    torch.manual_seed(0)
    logits, tokens, gradient = torch.randn(5, 7, 48).to(dtype), torch.randint(0, 48, (5, 7)), torch.randn(5)
    found = results(logits, tokens, gradient)
    for bad in (math.nan, math.inf, 1e38):
        spoilt, back = logits.clone(), gradient.clone()
        spoilt[2], back[2] = bad, bad
        for one, other in zip(results(spoilt, tokens, back), found, strict=True):
            assert torch.equal(one[[0, 1, 3, 4]], other[[0, 1, 3, 4]])
            assert not torch.equal(one[2], other[2])
    order = torch.tensor([3, 0, 4])
    for one, other in zip(results(logits[order], tokens[order], gradient[order]), found, strict=True):
        assert torch.equal(one, other[order])


@levels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 17, 47])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(
    level: str, dtype: torch.dtype, place: int, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a broken record is seen."""
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    logits, tokens = torch.randn(1, 3, 48).to(dtype), torch.tensor([[1, 2, 3]])
    logits[0, 1, place] = bad
    losses, by_logits = results(logits, tokens, torch.ones(1))
    assert not losses.isfinite().any()
    assert not by_logits[0, 1].isfinite().all()


@levels
def test_shares_that_are_nothing(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of minus infinity are tokens that cannot be."""
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    logits = torch.zeros(1, 1, 32)
    logits[0, 0, 2:] = -math.inf
    losses, by_logits = results(logits, torch.tensor([[1]]), torch.ones(1))
    assert losses.item() == pytest.approx(math.log(2))
    assert torch.allclose(by_logits[0, 0, :3], torch.tensor([0.5, -0.5, 0.0]), atol=1e-6)


@levels
@pytest.mark.parametrize("token", [-1, 16])
def test_tokens_outside_the_vocabulary_are_refused(level: str, token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    with pytest.raises(IndexError):
        mean_cross_entropy(torch.zeros(1, 2, 16), torch.tensor([[0, token]]))
