"""EDM: preconditioning and sampler against closed forms."""

from __future__ import annotations

import pytest
import torch

from sfumato.nets.diffusion import Denoiser, noise_levels, sample

STD = 0.5


def zero(x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.zeros_like(x)


def test_a_zero_network_is_the_best_linear_denoiser_of_gaussian_data() -> None:
    denoiser, x, level = Denoiser(zero, STD), torch.randn(5, 1, 2, 2), torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0])
    expected = x * (STD**2 / (STD**2 + level**2)).view(-1, 1, 1, 1)
    assert torch.allclose(denoiser(x, level, None, None), expected, rtol=1e-5)


def test_the_weighted_loss_of_a_zero_network_is_one_on_gaussian_data() -> None:
    clean, normal = STD * torch.randn(4_000, 1, 8, 8), torch.randn(4_000, 1, 8, 8)
    for level in (0.02, 0.3, 5.0):
        loss = Denoiser(zero, STD).loss(clean, normal, torch.full((4_000,), level), None, None)
        assert loss.shape == (4_000,)
        assert float(loss.mean()) == pytest.approx(1.0, abs=0.02)


def test_the_network_sees_unit_variance() -> None:
    seen: list[torch.Tensor] = []

    def spy(x: torch.Tensor, level: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    clean, normal = STD * torch.randn(500, 1, 8, 8), torch.randn(500, 1, 8, 8)
    for level in (0.02, 0.3, 5.0):
        Denoiser(spy, STD).loss(clean, normal, torch.full((500,), level), None, None)
    assert all(float(x.std()) == pytest.approx(1.0, abs=0.03) for x in seen)


def test_levels_fall_from_highest_to_zero() -> None:
    levels = noise_levels(9, 0.02, 40.0)
    assert len(levels) == 10
    assert levels[0] == pytest.approx(40.0)
    assert levels[-2] == pytest.approx(0.02)
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


def test_sampling_with_the_exact_denoiser_gives_the_data_law() -> None:
    torch.manual_seed(0)
    images = sample(Denoiser(zero, STD), torch.randn(3_000, 1, 4, 4), None, None, steps=24)
    assert float(images.std()) == pytest.approx(STD, rel=0.03)
    assert float(images.mean()) == pytest.approx(0.0, abs=0.01)


def test_second_order() -> None:
    """Halving the step divides the error by about four: on Gaussian data the exact end point is known."""
    start = torch.randn(50, 1, 2, 2)
    exact = start * 40.0 * STD / (40.0**2 + STD**2) ** 0.5
    errors = [
        float((sample(Denoiser(zero, STD), start, None, None, steps=steps, lowest=1e-4) - exact).abs().max())
        for steps in (16, 32)
    ]
    assert errors[1] < errors[0] / 3
