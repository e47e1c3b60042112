"""EDM: preconditioning and sampler against closed forms."""

from __future__ import annotations

import pytest
import torch

from sfumato.nets.diffusion import Denoiser, Sampler, noise_levels, sample, training_levels

STD = 0.5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_training_levels_are_edm_s() -> None:
    levels = training_levels(torch.tensor([-1.0, 0.0, 1.0]))
    assert levels.log().tolist() == pytest.approx([-2.4, -1.2, 0.0], abs=1e-6)


def test_sampling_with_the_exact_denoiser_gives_the_data_law() -> None:
    torch.manual_seed(0)
    images = sample(Denoiser(zero, STD), torch.randn(3_000, 1, 4, 4), None, None, Sampler(steps=24), seeded())
    assert float(images.std()) == pytest.approx(STD, rel=0.03)
    assert float(images.mean()) == pytest.approx(0.0, abs=0.01)


def test_second_order() -> None:
    """Halving the step divides the error by about four: on Gaussian data the exact end point is known."""
    start = torch.randn(50, 1, 2, 2)
    exact = start * 40.0 * STD / (40.0**2 + STD**2) ** 0.5
    errors = [
        float((sample(Denoiser(zero, STD), start, None, None, Sampler(steps, 1e-4), seeded()) - exact).abs().max())
        for steps in (16, 32)
    ]
    assert errors[1] < errors[0] / 3


def test_churn_keeps_the_law_and_moves_the_sample() -> None:
    torch.manual_seed(0)
    start = torch.randn(3_000, 1, 4, 4)
    plain, stirred = Sampler(steps=40), Sampler(steps=40, churn=10.0, churn_from=0.05, churn_to=20.0)
    one, other = (sample(Denoiser(zero, STD), start, None, None, s, seeded()) for s in (plain, stirred))
    assert float(other.std()) == pytest.approx(STD, rel=0.03)
    correlation = float((one * other).mean() / (one.std() * other.std()))
    assert correlation < 0.7, "noise that is added anew makes the sample forget its start"
    again = sample(Denoiser(zero, STD), start, None, None, stirred, seeded())
    assert torch.equal(other, again)


def test_guidance_moves_away_from_no_label() -> None:
    def network(x: torch.Tensor, level: torch.Tensor, labels: torch.Tensor | None, _: object) -> torch.Tensor:
        assert labels is not None
        return labels.clamp(min=0).float().view(-1, 1, 1, 1).expand_as(x)

    start, labels = torch.randn(2_000, 1, 2, 2, generator=seeded()), torch.ones(2_000, dtype=torch.long)
    means = [
        float(sample(Denoiser(network, STD), start, labels, None, Sampler(guidance=w), seeded()).mean())
        for w in (0.0, 1.0, 2.0)
    ]
    assert means[0] > 0.2
    assert means[1] == pytest.approx(2 * means[0], rel=0.02)
    assert means[2] == pytest.approx(3 * means[0], rel=0.02)
