"""Super-resolution learns what is missing from a coarse image, and nothing passes from one image to another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.methods.spectral_parts import CPU
from torch import Tensor

from sfumato.methods.denoising import to_bands
from sfumato.methods.open_training import minimise
from sfumato.methods.spectral_settings import SuperResolutionConfig
from sfumato.methods.superresolution import SuperResolver, lessons

IMAGE = (1, 16, 16)


def settings(**changes: Any) -> SuperResolutionConfig:
    return SuperResolutionConfig.model_validate({"width": (16, 16), "batch": 32, "steps": 120, "rate": 8e-3} | changes)


def resolver(config: SuperResolutionConfig | None = None) -> SuperResolver:
    torch.manual_seed(0)
    return SuperResolver(IMAGE, config or settings())


def textured(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Patches of grey with a texture that is stronger where they are brighter, and the same reduced fourfold."""
    patches = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 120 + 60
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2 - 1
    pictures = F.interpolate(patches, scale_factor=4) * (1 + 0.25 * checks)
    return pictures.round().to(torch.uint8), F.avg_pool2d(pictures, 4)


def test_it_restores_what_public_images_have() -> None:
    config = settings()
    model = resolver(config)
    pictures, coarse = textured(300, seed=1)
    batches = lessons(config, model, pictures, coarse, torch.Generator().manual_seed(0))
    assert list(minimise(model, batches, config.steps, config.rate, CPU, chunk=config.batch))[-1] == config.steps
    true, small = textured(20, seed=2)
    made = model.draw(small, torch.Generator().manual_seed(0), CPU, 8)
    assert made.shape == (20, *IMAGE)
    assert 0 <= float(made.min()) <= float(made.max()) <= 255
    enlarged = F.interpolate(small, (16, 16), mode="bicubic")
    assert float((made - true).abs().mean()) < 0.4 * float((enlarged - true).abs().mean())


def test_the_spread_is_that_of_the_missing_detail() -> None:
    model = resolver()
    pictures, coarse = textured(50, seed=4)
    model.measure(pictures, coarse)
    missing = pictures.float() - F.interpolate(coarse, (16, 16), mode="bicubic")
    expected = float(to_bands(missing / 127.5).square().mean().sqrt())
    assert float(model.get_buffer("spread")) == pytest.approx(expected, rel=1e-4)
    flat = torch.full((2, 1, 16, 16), 90, dtype=torch.uint8)
    model.measure(flat, torch.full((2, 1, 4, 4), 90.0))
    assert float(model.get_buffer("spread")) == pytest.approx(1e-3)  # nothing is missing: a floor, not zero


def test_rows_never_meet() -> None:
    model = resolver()
    torch.nn.init.normal_(model.network.outlet.weight, std=0.1)
    pictures, coarse = textured(4, seed=5)
    normal, level = torch.randn(4, 4, 8, 8), torch.rand(4) + 0.1
    before = model.losses(pictures, coarse, normal, level)
    pictures[2], coarse[2], normal[2] = 0, 255, 7
    after = model.losses(pictures, coarse, normal, level)
    assert (before != after).tolist() == [False, False, True, False]
