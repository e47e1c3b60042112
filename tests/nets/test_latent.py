"""The autoencoder: what it starts with is the best linear one, and items of a batch never meet."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.latent import CHANNELS, GRID, SIDE, LatentAutoencoder


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Smooth pictures, `(48, 3, 64, 64)`, in [-1, 1]."""
    coarse = torch.rand(48, 3, 9, 9, generator=torch.Generator().manual_seed(4)) * 2 - 1
    return F.interpolate(coarse, SIDE, mode="bicubic").clamp(-1, 1)


@pytest.fixture(scope="module")
def started(pictures: Tensor) -> LatentAutoencoder:
    network = LatentAutoencoder().requires_grad_(False)
    network.start(pictures)
    return network


def test_an_untrained_network_is_the_best_linear_one(started: LatentAutoencoder, pictures: Tensor) -> None:
    patches = F.pixel_unshuffle(pictures, 8).movedim(1, -1).reshape(-1, 192)
    centred = patches - patches.mean(0)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    best = (left[:, :CHANNELS] * values[:CHANNELS]) @ right[:CHANNELS]
    found = started.decode(started.encode(pictures))
    error = ((found - pictures) ** 2).mean()
    assert error == pytest.approx(float(((best - centred) ** 2).mean()), rel=0.01)
    assert started.encode(pictures).shape == (48, CHANNELS, GRID, GRID)


def test_coarse_structure_keeps_more_variance_than_detail(started: LatentAutoencoder, pictures: Tensor) -> None:
    deviations = started.encode(pictures).std((0, 2, 3))
    assert deviations[0] > 1.5 * deviations[-1]
    assert 0.5 < deviations.mean() < 2


def test_standardised_latents_decode_to_the_same_picture(pictures: Tensor) -> None:
    network = LatentAutoencoder().requires_grad_(False)
    network.start(pictures)
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.normal_(layer.bias, std=0.1)  # type: ignore[arg-type]
    before = network.decode(network.encode(pictures))
    network.standardise(pictures)
    latents = network.encode(pictures)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert latents.std() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(network.decode(latents), before, atol=1e-4, rtol=1e-3)


def test_items_of_a_batch_never_meet(started: LatentAutoencoder, pictures: Tensor) -> None:
    network = LatentAutoencoder().requires_grad_(False)
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    changed = pictures[:4].clone()
    changed[2] = -changed[2]
    before, after = (network.decode(network.encode(batch)) for batch in (pictures[:4], changed))
    assert (before == after).flatten(1).all(1).tolist() == [True, True, False, True]


def test_it_learns_what_the_linear_path_misses(pictures: Tensor) -> None:
    torch.manual_seed(2)
    sharp = (pictures > 0).float() * 2 - 1
    network = LatentAutoencoder()
    network.start(sharp)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)

    def error() -> Tensor:
        return ((network.decode(network.encode(sharp[:4])) - sharp[:4]) ** 2).mean()

    before = float(error().detach())
    for _ in range(14):
        optimiser.zero_grad()
        error().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert float(error().detach()) < 0.8 * before
