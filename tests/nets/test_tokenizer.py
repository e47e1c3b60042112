"""Tokens of scales: as many for each, exact, coarse first; any number of scales decodes; training helps."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.tokenizer import Tokenizer, TokenizerShape, k_means
from sfumato.nets.transformer import TransformerShape

DECODER = TransformerShape(width=16, layers=1, heads=2)


def pictures(count: int, channels: int = 3, side: int = 16, seed: int = 0) -> Tensor:
    """Smooth blots, whole numbers from 0 to 255."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, channels, 4, 4, generator=generator)
    large = F.interpolate(small, (side, side), mode="bilinear")
    noise = 0.05 * torch.randn(large.shape, generator=generator)
    return ((large + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def tokenizer(levels: int = 2, patch: int = 2, channels: int = 3, vocabulary: int = 16) -> Tokenizer:
    torch.manual_seed(0)
    made = Tokenizer(TokenizerShape((channels, 16, 16), levels, patch, vocabulary, DECODER))
    generator = torch.Generator().manual_seed(0)
    for scale, found in enumerate(made.patches(pictures(40, channels))):
        points = found.flatten(0, 1)
        made.set_codebook(scale, k_means(points, vocabulary, 5, generator), float(points.std()))
    return made.requires_grad_(False)


@pytest.mark.parametrize(("levels", "patch", "channels"), [(2, 2, 3), (1, 2, 1), (3, 1, 3), (0, 4, 1)])
def test_as_many_tokens_for_each_scale(levels: int, patch: int, channels: int) -> None:
    made, images = tokenizer(levels, patch, channels), pictures(5, channels, seed=1)
    shape = made.shape
    assert shape.tokens == (16 // (patch << levels)) ** 2
    assert made.encode(images).shape == (5, shape.scales * shape.tokens)
    numbers = [len(part[0, 0]) * shape.tokens for part in made.patches(images)]
    assert sum(numbers) == channels * 16 * 16  # nothing is left out
    assert torch.allclose(made.picture(made.patches(images)), images.float(), atol=1e-3)
    for known in range(1, shape.scales + 1):
        small = made.decode(made.encode(images, known))
        assert small.shape == (5, *shape.small(known))
        assert float(small.min()) >= 0
        assert float(small.max()) <= 255


def test_patches_of_the_coarsest_scale_are_thumbnails() -> None:
    images = pictures(2, seed=1)
    small = tokenizer().picture(tokenizer().patches(images, 1))
    assert torch.allclose(small, F.avg_pool2d(images.float(), 4), atol=1e-4)


def test_a_token_is_the_nearest_code_and_the_lowest_of_several() -> None:
    made, images = tokenizer(), pictures(4, seed=1)
    for scale, found in enumerate(made.patches(images)):
        tokens = made.encode(images)[:, scale * 4 : scale * 4 + 4]
        distances = (found.double()[:, :, None] - made.codebook(scale).double()).square().sum(-1)
        assert torch.equal(tokens, distances.argmin(-1))
    codes = made.codebook(0).clone()
    codes[3:] = codes[3]
    made.set_codebook(0, codes, 1.0)
    assert int(made.encode(images, 1).max()) <= 3


def test_tokens_depend_on_their_own_image_alone_bit_for_bit() -> None:
    """In any batch, at any place, whole or alone: also where two codes are equally far."""
    made, images = tokenizer(), pictures(33, seed=2)
    codes = made.codebook(0).clone()
    codes[1] = codes[0] + 1 / 4  # a near tie, one step of the grid apart
    made.set_codebook(0, codes, 1.0)
    together = made.encode(images)
    assert torch.equal(torch.cat([made.encode(image[None]) for image in images]), together)
    order = torch.randperm(33)
    assert torch.equal(made.encode(images[order]), together[order])
    assert torch.equal(made.encode(images[5:20]), together[5:20])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.encode(images), together)


def test_products_of_codes_are_exact() -> None:
    """Float64 gives what whole numbers of any length give, whatever the order of sums."""
    made, images = tokenizer(levels=3, patch=1), pictures(3, seed=3)
    grid = 2**3
    for scale, found in enumerate(made.patches(images)):
        codes = made.codebook(scale)
        assert torch.equal(codes * grid, (codes * grid).round())
        whole = (found * grid).round().long() @ (codes * grid).round().long().T
        assert torch.equal((found.double() @ codes.double().T) * grid**2, whole.double())


def test_coarse_tokens_do_not_see_detail() -> None:
    """Whatever leaves the means of blocks as they are leaves the coarse tokens as they are."""
    made, images = tokenizer(), pictures(3, seed=4).clamp(40, 215).long()
    swing = torch.tensor([1, -1]).repeat(8) * 30
    changed = images + swing * swing.sign()[:, None]
    assert torch.equal(made.encode(changed, 1), made.encode(images, 1))
    assert not torch.equal(made.encode(changed), made.encode(images))


def test_the_decoder_is_scale_causal() -> None:
    made = tokenizer()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokens = made.encode(pictures(2, seed=5))
    before = made(tokens)
    for known in (1, 2, 3):
        for early, late in zip(made(tokens[:, : 4 * known]), before, strict=False):
            assert torch.allclose(early, late, atol=1e-4)
    for scale in range(3):
        changed = tokens.clone()
        changed[:, scale * 4] = (changed[:, scale * 4] + 1) % 16
        moved = [(a - b).abs().amax((1, 2)) > 1e-5 for a, b in zip(made(changed), before, strict=True)]
        assert [bool(row.all()) for row in moved] == [other >= scale for other in range(3)]
        assert [bool(row.any()) for row in moved] == [other >= scale for other in range(3)]


def test_an_untrained_decoder_gives_the_codes() -> None:
    made, images = tokenizer(), pictures(3, seed=6)
    tokens = made.encode(images)
    for scale, patches in enumerate(made(tokens)):
        assert torch.equal(patches, made.codebook(scale)[tokens[:, scale * 4 : scale * 4 + 4]])


def test_training_lowers_the_error_of_every_scale() -> None:
    made, images = tokenizer(vocabulary=8), pictures(64, seed=7)
    before = made.errors(images)
    assert [(error.height, error.width) for error in before] == [(4, 4), (8, 8), (16, 16)]
    optimiser = torch.optim.AdamW(made.requires_grad_(True).parameters(), 3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        made.losses(images).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    after = made.errors(images)
    assert all(new.rmse < 0.97 * old.rmse for new, old in zip(after, before, strict=True))
    assert all(new.lost < old.lost < 1.2 for new, old in zip(after, before, strict=True))


def test_errors_against_hand() -> None:
    made, images = tokenizer(), pictures(4, seed=8)
    found = made.errors(images)
    for known, error in zip((1, 2, 3), found, strict=True):
        true = F.avg_pool2d(images.float(), 2 ** (3 - known))
        difference = made.decode(made.encode(images, known)) - true
        assert error.rmse == pytest.approx(float(difference.square().mean().sqrt()), rel=1e-3)
    first = made.patches(images)[0]
    left = (first - made(made.encode(images, 1))[0]).square().sum()
    assert found[0].lost == pytest.approx(float(left / (first - first.mean((0, 1))).square().sum()), rel=1e-3)


def test_k_means_finds_groups_and_fills_empty_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor(list(itertools.product((0.0, 10.0), (0.0, 10.0), (0.0, 10.0))))
    points = (centres.repeat_interleave(50, 0) + 0.1 * torch.randn(400, 3, generator=generator)).contiguous()
    found = k_means(points, 8, 15, generator)
    assert torch.cdist(centres, found).min(1).values.max() < 0.2
    few = k_means(points[:3], 8, 3, generator)
    assert few.shape == (8, 3)
    assert torch.cdist(points[:3], few).min(1).values.max() < 1e-2
