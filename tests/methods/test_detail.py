"""Detail stages: they keep what they are given, bring images to size, and the floor tells good bands from bad ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.methods.spectral_parts import CPU, config, known, pictures

from sfumato.methods.detail import (
    DiffusedDetail,
    ExampleDetail,
    TokenDetail,
    UpscaledDetail,
    enlarged,
    floor_of,
    floors,
    upscaled,
)
from sfumato.methods.spectral_settings import ExamplesConfig
from sfumato.nets.autoregressive import PLAIN
from sfumato.pretrained.lanczos import Lanczos


def coarse(count: int = 5) -> torch.Tensor:
    return known().tokenizer.encode(torch.from_numpy(pictures(count)), 1)


def test_detail_tokens_stand_behind_the_coarse_ones() -> None:
    model, nothing = known(detail="tokens"), torch.full((5,), -1)
    stage = TokenDetail(model.tokenizer, model.network, PLAIN)
    made = stage.pictures(coarse(), nothing, torch.Generator().manual_seed(0), CPU)
    assert made.shape == (5, 1, 8, 8)
    assert made.dtype == torch.uint8
    small = model.tokenizer.decode(coarse())
    assert float((F.avg_pool2d(made.float(), 2) - small).abs().mean()) < 12
    other = stage.pictures(coarse(), nothing, torch.Generator().manual_seed(1), CPU)
    assert not torch.equal(made, other)  # drawn


def test_detail_from_examples() -> None:
    model = known()
    assert model.examples is not None
    stage = ExampleDetail(model.tokenizer, model.examples, ExamplesConfig())
    made = stage.pictures(model.examples.tokens[:5], torch.full((5,), -1), torch.Generator(), CPU)
    assert made.shape == (5, 1, 8, 8)
    assert made.dtype == torch.uint8
    known_ones = set(map(str, model.examples.pictures.tolist()))  # a window covers these small pictures
    assert all(str(picture) in known_ones for picture in made.tolist())


def test_diffused_detail_keeps_the_coarse_image() -> None:
    model = known(detail="diffusion")
    assert model.resolver is not None
    stage = DiffusedDetail(model.tokenizer, model.resolver, levels=8)
    made, again, other = (
        stage.pictures(coarse(), torch.full((5,), -1), torch.Generator().manual_seed(seed), CPU) for seed in (0, 0, 1)
    )
    assert made.shape == (5, 1, 8, 8)
    assert made.dtype == torch.uint8
    assert float((F.avg_pool2d(made.float(), 2) - model.tokenizer.decode(coarse())).abs().mean()) < 12
    assert torch.equal(made, again)
    assert not torch.equal(made, other)  # drawn


def test_diffusion_refuses_images_that_it_cannot_halve_twice() -> None:
    config(levels=1, patch=1).refuse_sizes((1, 6, 6))
    with pytest.raises(ValueError, match=r"multiples of 4; set spectral\.detail"):
        config(levels=1, patch=1, detail="diffusion").refuse_sizes((1, 6, 6))


def test_an_upscaler_stands_in_for_it() -> None:
    model = known()
    stage = UpscaledDetail(model.tokenizer, Lanczos(4))
    made = stage.pictures(coarse(), torch.full((5,), -1), torch.Generator(), CPU)
    assert made.shape == (5, 1, 8, 8)
    assert float((F.avg_pool2d(made.float(), 2) - model.tokenizer.decode(coarse())).abs().mean()) < 6


@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_by_any_factor(channels: int) -> None:
    images = torch.from_numpy(pictures(2, channels=channels))
    assert upscaled(images, Lanczos(2), 64, 64).shape == (2, channels, 64, 64)
    assert upscaled(images, Lanczos(4), 20, 12).shape == (2, channels, 20, 12)
    large = enlarged(images, Lanczos(3))
    assert large.shape == (2, channels, 24, 24)
    assert float((F.avg_pool2d(large.float(), 3) - images.float()).abs().mean()) < 6


def test_the_floor_by_hand() -> None:
    torch.manual_seed(0)
    true = torch.rand(6, 1, 16, 16) * 255
    small = F.avg_pool2d(true, 2)
    blocks = F.interpolate(small, scale_factor=2)
    found = floor_of("blocks", 1, true, blocks)
    assert (found.levels, found.height, found.width) == (1, 8, 8)
    assert found.sharpness == pytest.approx(0, abs=1e-6)
    assert found.psnr == pytest.approx(float(10 * torch.log10(255**2 / (true - blocks).square().mean())))
    centre = true.mean()
    assert found.energy == pytest.approx(float((small - centre).square().mean() / (true - centre).square().mean()))
    same = floor_of("same", 1, true, true)
    assert same.psnr > 100
    assert same.sharpness == pytest.approx(1)


def test_floors_of_every_number_of_levels() -> None:
    smooth = torch.from_numpy(pictures(60, channels=3, side=32))
    found = list(floors(smooth))
    assert [(floor.levels, floor.detail) for floor in found] == [
        (levels, detail) for levels in (1, 2, 3, 4) for detail in ("lanczos", "regression")
    ]
    energy = [floor.energy for floor in found if floor.detail == "lanczos"]
    assert energy == sorted(energy, reverse=True)
    assert energy[0] > 0.9
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), np.uint8))
    bad = list(floors(noise))
    assert max(floor.psnr for floor in bad) < min(floor.psnr for floor in found)
    assert all(floor.energy < 0.3 for floor in bad)
    assert list(floors(noise[:1])) == []
    odd = torch.from_numpy(pictures(4, side=12))
    assert {floor.levels for floor in floors(odd)} == {1, 2}


def test_regression_learns_what_blocks_look_like() -> None:
    """Blocks that are all alike but for their light come back as they are."""
    pattern = torch.tensor([[30.0, -30.0], [-30.0, 30.0]])
    light = torch.rand(40, 1, 8, 8) * 100 + 70
    images = (F.interpolate(light, scale_factor=2) + pattern.repeat(8, 8)).byte()
    found = {floor.detail: floor for floor in floors(images, most=1)}
    assert found["regression"].psnr > found["lanczos"].psnr + 6
    assert found["regression"].sharpness == pytest.approx(1, abs=0.1)
