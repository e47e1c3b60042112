"""The warm start: bounded and separate contributions, weights that go where the noisy mean points and no further."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.methods.spectral_parts import known, pictures

from sfumato.methods.prototypes import Layout, Prototypes
from sfumato.methods.tilting import LEAST, CoarseBand, mean_deviation, tilt, warm_batches
from sfumato.privacy.draws import Draws
from sfumato.privacy.records import Rows

LAYOUT = Layout((1, 4, 4), 1)


def rows(images: torch.Tensor) -> Rows:
    count = len(images)
    draws = Draws(b"k" * 32, "t", 1, [bytes(16)] * count)
    return Rows(images, torch.arange(count) % 2, torch.ones(count, dtype=torch.bool), draws)


def test_no_image_adds_more_than_one() -> None:
    band = CoarseBand(known().tokenizer, 2)
    extreme = torch.stack([
        torch.zeros(1, 8, 8), torch.full((1, 8, 8), 255.0), torch.rand(1, 8, 8).round() * 255,
        (torch.arange(64).view(1, 8, 8) % 8 < 4) * 255.0, (torch.arange(64).view(1, 8, 8) < 32) * 255.0,
    ])  # fmt: skip
    blocks, vectors = band.vectors(rows(torch.cat((extreme, torch.from_numpy(pictures(20)).float())).byte()))
    assert vectors.shape == (25, band.layout.block)
    assert blocks.tolist() == [number % 2 for number in range(25)]
    assert float(vectors.norm(dim=1).max()) < 1


def test_a_record_adds_what_it_adds_alone_bit_for_bit() -> None:
    band, images = CoarseBand(known().tokenizer, 0), torch.from_numpy(pictures(9))
    _, together = band.vectors(rows(images))
    order = torch.randperm(9)
    assert torch.equal(band.vectors(rows(images[order]))[1], together[order])
    assert torch.equal(band.thumbnails(images), torch.nn.functional.avg_pool2d(images.float(), 2))


def thumbnails(count: int = 3000) -> torch.Tensor:
    torch.manual_seed(0)
    tilted = torch.randn(count, 1, 4, 4) @ (torch.eye(4) + 0.2)
    return (127.5 + 20 * tilted).clamp(0, 255)


def test_the_mean_goes_where_it_is_pointed() -> None:
    small = thumbnails()
    public = (small / 127.5 - 1).mean(0)
    target = public + 0.1 * torch.linspace(-1, 1, 16).view(1, 4, 4)
    found = tilt(small, target, 1e-4, LAYOUT)
    assert found.share == 1
    assert float(found.weights.sum()) == pytest.approx(1)
    moved = (found.weights.float()[:, None, None, None] * (small / 127.5 - 1)).sum(0)
    assert float((moved - target).norm()) < 0.2 * float((public - target).norm())


def test_noise_moves_nothing() -> None:
    small = thumbnails()
    public = (small / 127.5 - 1).mean(0)
    noise = 0.3 * torch.randn(1, 4, 4)
    loud, deaf = tilt(small, public + noise, 1e-4, LAYOUT), tilt(small, public + noise, 1.0, LAYOUT)
    assert loud.count < 0.5 * len(small)
    assert deaf.count > 0.99 * len(small)


def test_weights_are_evened_out_where_too_few_images_would_count() -> None:
    small = thumbnails()
    found = tilt(small, torch.full((1, 4, 4), 0.9), 1e-4, LAYOUT)
    assert found.share < 0.5
    assert found.count == pytest.approx(LEAST, rel=0.1)
    few = tilt(small[:20], torch.full((1, 4, 4), 0.9), 1e-4, LAYOUT)
    assert few.count == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(("source", "near"), [("public", 0), ("model", 2), ("auto", 1)])
def test_batches_come_from_where_they_should(source: str, near: int) -> None:
    """Class 0 lies among the public images; class 1 far from all of them."""
    images = torch.from_numpy(np.clip(pictures(400, seed=1), 0, 150))
    band = CoarseBand(known().tokenizer, 2)
    mean = band.thumbnails(images).mean(0) / 127.5 - 1
    prototypes = Prototypes(
        torch.stack([mean, torch.full((1, 4, 4), 0.95)]), torch.zeros(2, 1, 1, 4, 4), torch.tensor([200.0, 200.0])
    )
    generator = torch.Generator().manual_seed(0)
    batches = warm_batches(band, prototypes, 1e-3, images, source, lambda labels, _: labels, 200, generator)  # type: ignore[arg-type]
    tokens, labels = next(batches)
    assert labels.bincount().tolist() == pytest.approx([100, 100], abs=25)
    white = band.tokenizer.encode(torch.full((1, 1, 8, 8), 0.95 * 127.5 + 127.5), 1)
    average = band.tokenizer.encode(torch.nn.functional.interpolate((mean[None] + 1) * 127.5, scale_factor=2), 1)
    from_models = [bool((tokens[labels == 0] == average).all()), bool((tokens[labels == 1] == white).all())]
    assert sum(from_models) == near
    assert from_models[1] == (source != "public")


def test_unconditional_batches_have_no_label() -> None:
    images, band = torch.from_numpy(pictures(50)), CoarseBand(known().tokenizer, 0)
    mean = band.thumbnails(images).mean(0) / 127.5 - 1
    prototypes = Prototypes(mean[None], torch.zeros(1, 1, 1, 4, 4), torch.tensor([50.0]))
    generator = torch.Generator().manual_seed(0)
    _, labels = next(warm_batches(band, prototypes, 1.0, images, "public", lambda labels, _: labels, 8, generator))
    assert labels.tolist() == [-1] * 8


def test_noise_of_a_mean() -> None:
    assert mean_deviation(LAYOUT, 2.0, 100.0) == pytest.approx(2.0 / 0.66 * 4 / 100)
