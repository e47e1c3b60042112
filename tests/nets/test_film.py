"""What lies between convolutions: compiled and in PyTorch it is one function, and images never meet in it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.nets.test_compiled import LEVELS
from torch import Tensor

from sfumato.nets.film import film_silu

levels = pytest.mark.parametrize("level", LEVELS)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def exact(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    x = x.double()
    mean, variance = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), correction=0, keepdim=True)
    z = (x - mean) / (variance + 1e-5).sqrt()
    if scale is not None and shift is not None:
        z = z * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
    return F.silu(z)


def inputs(images: int, channels: int, side: int, dtype: torch.dtype, filmed: bool) -> list[Tensor]:
    x = torch.randn(images, channels, side, side + 1).contiguous(memory_format=torch.channels_last) * 2 + 1
    film = torch.randn(2, images, channels) if filmed else ()
    return [value.to(dtype).requires_grad_() for value in (x, *film)]


def results(values: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """Output and gradients."""
    copies = [value.detach().requires_grad_() for value in values]
    y = film_silu(*copies)
    return [y.detach(), *torch.autograd.grad(y, copies, gradient.to(y.dtype))]


@levels
@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 4),
    channels=st.sampled_from([16, 32, 48, 5]),
    side=st.integers(1, 9),
    half=st.booleans(),
    filmed=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients(
    level: str, images: int, channels: int, side: int, half: bool, filmed: bool, threads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    values = inputs(images, channels, side, torch.bfloat16 if half else torch.float32, filmed)
    gradient = torch.randn_like(values[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_KERNELS", level)
        found = results(values, gradient)
    right = exact(*values, *(() if filmed else (None, None)))
    expected = [right, *torch.autograd.grad(right, values, gradient.double())]
    for one, other, like in zip(found, expected, (values[0], *values), strict=True):
        assert one.dtype == like.dtype
        assert one.shape == like.shape
        # In bfloat16, PyTorch rounds 1 + scale and what it sums.
        error = (one.double() - other).norm() / (other.double().norm() + 1e-3)
        assert error < (2e-2 if half else 2e-5)


@levels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_depends_on_itself_alone(level: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, wherever it is in the batch and whatever the others hold."""
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    torch.manual_seed(0)
    values, gradient = inputs(5, 32, 6, dtype, True), torch.randn(5, 32, 6, 7)
    found = results(values, gradient)
    for bad in (math.nan, math.inf, 1e38):
        spoilt = [value.detach().clone() for value in values]
        spoilt[0][2] = bad
        for one, other in zip(results(spoilt, gradient), found, strict=True):
            assert torch.equal(one[[0, 1, 3, 4]], other[[0, 1, 3, 4]])
        if not math.isfinite(bad):
            assert results(spoilt, gradient)[0][2].isnan().all()
    if level != "off":
        order = torch.tensor([3, 0, 4])
        for one, other in zip(results([value[order] for value in values], gradient[order]), found, strict=True):
            assert torch.equal(one, other[order])


@levels
def test_extreme_values_stay_finite(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant images, and scales that drive SiLU to either end."""
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    x, scale, shift = torch.ones(2, 16, 4, 4), torch.full((2, 16), 300.0), torch.full((2, 16), -200.0)
    x[1, :8] = -1
    found = results([x, scale, shift], torch.ones(2, 16, 4, 4))
    assert all(value.isfinite().all() for value in found)
    assert torch.allclose(found[0], exact(x, scale, shift).float(), atol=1e-4)


def test_vmap_and_memory_of_any_order() -> None:
    values = inputs(4, 32, 5, torch.float32, True)
    mapped = torch.vmap(lambda x, scale, shift: film_silu(x[None], scale[None], shift[None])[0])(*values)
    assert torch.allclose(mapped, film_silu(*values), atol=1e-5)
    contiguous = values[0].detach().contiguous()
    assert torch.equal(film_silu(contiguous, *values[1:]), film_silu(*values))
    assert film_silu(contiguous).is_contiguous(memory_format=torch.channels_last)
    assert film_silu(contiguous[:0]).shape == (0, 32, 5, 6)
