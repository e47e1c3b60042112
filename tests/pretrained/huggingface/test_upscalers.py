from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.methods.spectral_parts import CPU
from tests.methods.spectral_parts import config as tiny
from tests.pretrained.huggingface.conftest import Saved

from sfumato.errors import UserError
from sfumato.methods.spectral_model import untrained, upscaler
from sfumato.nets.autoregressive import Condition
from sfumato.pretrained.huggingface import load
from sfumato.pretrained.interfaces import Images, Upscaler

pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize(("name", "factor"), [("x4", 4), ("x2", 2)])
def test_a_result_depends_on_its_image_alone(saved: Saved, images: Images, name: str, factor: int) -> None:
    model = load(str(saved(name)), "upscaler", batch=2, steps=2)
    assert isinstance(model, Upscaler)
    assert model.factor == factor
    small = images[:3, :, :20, :28]
    large = model.upscale(small)
    assert large.shape == (3, 3, 20 * factor, 28 * factor)
    assert large.dtype == np.uint8
    assert (model.upscale(small[2:]) == large[2:]).all()
    assert (model.upscale(small[::-1].copy()) == large[::-1]).all()
    assert np.abs(large[0].astype(float) - large[1]).mean() > 0.5, "the image does not matter"
    assert model.upscale(small[:0]).shape == (0, 3, 20 * factor, 28 * factor)
    two = load(str(saved(name)), "upscaler", batch=2, steps=2, devices=["cpu", "cpu"])
    assert (two.upscale(small) == large).all()


def test_settings_matter(saved: Saved, images: Images) -> None:
    small = images[:1, :, :16, :16]
    results = [
        load(str(saved("x4")), "upscaler", steps=1, **options).upscale(small)
        for options in ({}, {"seed": 1}, {"noise_level": 90}, {"prompt": "a cat", "guidance": 3.0})
    ]
    for other in results[1:]:
        assert (results[0] != other).any()


def test_spectral_takes_them(saved: Saved) -> None:
    """As its detail stage, and to enlarge what it releases."""
    config = tiny(detail="lanczos", enlarge=f"huggingface:{saved('x2')}")
    (large,) = untrained(config, (3, 8, 8), Condition()).sample(torch.full((2,), -1), 0, CPU)
    assert large.shape == (2, 3, 16, 16)
    config = tiny(detail=f"huggingface:{saved('x2')}")
    (detailed,) = untrained(config, (3, 8, 8), Condition()).sample(torch.full((2,), -1), 0, CPU)
    assert detailed.shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match="no upscaler that Sfumato knows"):
        upscaler(f"huggingface:{saved('sdxl')}")
    with pytest.raises(UserError, match="no upscaler called"):
        upscaler("nothing-like-it")


def test_what_is_no_upscaler_is_refused(saved: Saved, images: Images) -> None:
    with pytest.raises(UserError, match="no upscaler that Sfumato knows"):
        load(str(saved("sdxl")), "upscaler")
    with pytest.raises(UserError, match="takes none"):
        load(str(saved("x2")), "upscaler", noise_level=3)
    with pytest.raises(UserError, match="Images must be uint8"):
        load(str(saved("x2")), "upscaler", steps=1).upscale(images[:, :1])
