"""Class models from one sum: bounded for every picture, right without noise, modest under noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.methods.prototypes import Layout, Prototypes, read_prototypes, share_for_clear_means, without_noise
from sfumato.privacy.draws import Draws
from sfumato.privacy.records import Rows


def rows(images: torch.Tensor, labels: torch.Tensor) -> Rows:
    count = len(images)
    return Rows(images, labels, torch.ones(count, dtype=torch.bool), Draws(b"", "", 0, [bytes(16)] * count))


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["black", "white", "halves", "noise"]),
    shape=st.sampled_from([(1, 28, 28), (3, 32, 32), (1, 12, 8)]),
)
def test_no_picture_reaches_the_clip_norm(kind: str, shape: tuple[int, int, int]) -> None:
    images = {
        "black": torch.zeros(2, *shape),
        "white": torch.full((2, *shape), 255),
        "halves": torch.cat(
            (torch.zeros(2, *shape[:2], shape[2] // 2), torch.full((2, *shape[:2], shape[2] // 2), 255)), 3
        ),
        "noise": torch.randint(0, 256, (2, *shape)),
    }[kind].to(torch.uint8)
    blocks, vectors = Layout(shape, 4).vectors(rows(images, torch.tensor([0, 3])))
    assert blocks.tolist() == [0, 3]
    assert vectors.shape == (2, Layout(shape, 4).block)
    assert float(vectors.double().norm(dim=1).max()) <= 1.0


def small_world(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes with known means; each varies along one smooth direction."""
    torch.manual_seed(0)
    grid = torch.linspace(-1, 1, 16)
    means = torch.stack((grid[None, :].expand(16, 16), grid[:, None].expand(16, 16))) * 0.4
    direction = 0.3 * torch.cos(2 * grid)[:, None] * torch.cos(grid)[None, :]
    labels = torch.arange(count) % 2
    pictures = means[labels] + torch.randn(count, 1, 1) * direction
    return (((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))[:, None], labels


def noiseless(layout: Layout, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    blocks, vectors = layout.vectors(rows(images, labels))
    return (
        torch.zeros(layout.classes, layout.block, dtype=torch.float64).index_add_(0, blocks, vectors.double()).numpy()
    )


def test_means_spread_and_counts_are_recovered() -> None:
    images, labels = small_world(600)
    layout = Layout((1, 16, 16), 2)
    found = read_prototypes(noiseless(layout, images, labels), layout, 0.0, floor=1.0)
    real = images.float() / 127.5 - 1
    assert torch.allclose(found.counts, torch.tensor([300.0, 300.0]), rtol=1e-4)
    generator = torch.Generator().manual_seed(1)
    drawn = found.sample(labels, generator)
    for number in (0, 1):
        assert torch.allclose(found.means[number], real[labels == number].mean(0), atol=1e-3)
        spread = real[labels == number].var(0)
        assert torch.allclose(drawn[labels == number].var(0), spread, atol=0.03)


def test_a_sample_needs_no_more_memory_than_pictures_do() -> None:
    """Not that of the factors of each picture, which at 64 x 64 in colour is 1.2 MB for every one."""
    model = Prototypes(torch.zeros(3, 3, 32, 32), torch.randn(3, 24, 3, 32, 32), torch.ones(3))
    labels, generator = torch.arange(300) % 3, torch.Generator().manual_seed(0)
    with torch.profiler.profile(profile_memory=True) as profile:
        pictures = model.sample(labels, generator)
    most = max(event.self_cpu_memory_usage for event in profile.events())
    assert pictures.nbytes <= most < 2 * pictures.nbytes


def test_noise_hides_directions_instead_of_inventing_them() -> None:
    images, labels = small_world(600)
    layout = Layout((1, 16, 16), 2)
    total = noiseless(layout, images, labels)
    noisy = total + np.random.default_rng(0).normal(0, 300.0, total.shape)
    found = read_prototypes(noisy, layout, 300.0, floor=30.0)
    assert not found.factors.any()
    assert float(found.means.abs().max()) <= 1
    assert float(found.counts.min()) >= 30


def test_noise_on_what_is_found_is_shrunk() -> None:
    images, labels = small_world(600)
    layout = Layout((1, 16, 16), 2)
    total = noiseless(layout, images, labels)
    true = read_prototypes(total, layout, 0.0, floor=1.0)
    noisy = total + np.random.default_rng(0).normal(0, 0.6, total.shape)
    found = read_prototypes(noisy, layout, 0.6, floor=30.0)
    believed = read_prototypes(noisy, layout, 1e-9, floor=30.0)  # told that there is no noise

    def errors(model: Prototypes) -> tuple[float, float]:
        spreads = [one.factors.square().sum(1) for one in (model, true)]
        means = float((model.means - true.means).square().mean())
        return means, float((spreads[0] - spreads[1]).square().mean())

    assert all(less < 0.5 * more for less, more in zip(errors(found), errors(believed), strict=True))


def test_white_noise_is_shrunk_and_what_is_above_it_stays() -> None:
    grid = torch.linspace(0, np.pi, 28, dtype=torch.float64)
    true = (torch.cos(grid)[:, None] * torch.cos(2 * grid)[None, :]).expand(3, 2, 28, 28)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=true.shape))
    deviations = torch.tensor([0.0, 0.2, 1e9], dtype=torch.float64)
    noisy = true + deviations[:, None, None, None] * noise
    found = without_noise(noisy, deviations)
    assert torch.allclose(found[0], true[0])
    assert float((found[1] - true[1]).square().mean()) < 0.1 * 0.2**2
    assert float(found[2].square().mean()) < 0.2 * float(noisy[2].square().mean())


def test_an_unconditional_run_has_one_class() -> None:
    images, labels = small_world(100)
    blocks, _ = Layout((1, 16, 16), 1).vectors(rows(images, torch.full_like(labels, -1)))
    assert not blocks.any()


@pytest.mark.parametrize(("shape", "coarse"), [((1, 28, 28), 49), ((3, 32, 32), 48), ((3, 64, 64), 48)])
def test_coarse_versions_are_small_and_never_longer(shape: tuple[int, int, int], coarse: int) -> None:
    layout, pictures = Layout(shape, 1), torch.randn(4, *shape)
    low = layout.to_coarse(pictures)
    assert low.shape == (4, coarse)
    assert layout.coarse == coarse
    assert (low.norm(dim=1) <= pictures.flatten(1).norm(dim=1) * (1 + 1e-6)).all()


def test_the_share_for_clear_means_makes_them_clear() -> None:
    layout, size, mu = Layout((1, 28, 28), 10), 60_000, 0.268
    share = share_for_clear_means(layout, size, mu, 1)
    noise = np.random.default_rng(0).normal(0, 1 / (mu * share**0.5), (10, layout.block))
    noise[:, layout.pixels] = size / 10 * noiseless(layout, torch.zeros(1, 1, 28, 28), torch.zeros(1).long())[0, 784]
    means = noise[:, : layout.pixels] / noise[:, layout.pixels, None] * 0.14 / 0.66 * layout.radius
    assert means.std() == pytest.approx(0.06, rel=0.05)
    assert share_for_clear_means(layout, 2 * size, mu, 1) == pytest.approx(share / 4)
    assert share_for_clear_means(layout, 2 * size, mu, 2) == pytest.approx(share / 2)
    assert share_for_clear_means(layout, 100, mu, 1) == 0.25
    assert share_for_clear_means(layout, 10 * size, mu, 1) == 0.04
