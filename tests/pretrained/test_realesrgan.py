from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sfumato.errors import UserError
from sfumato.pretrained.interfaces import Images, Upscaler
from sfumato.pretrained.portraits import Portraits
from sfumato.pretrained.realesrgan import RealESRGAN

pytestmark = pytest.mark.usefixtures("offline")


def resized(image: Images, side: int) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def roughness(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


def test_larger_sharper_and_still_the_same_picture(upscaler: RealESRGAN, portraits: Portraits) -> None:
    small = np.stack([resized(face, 28) for face in portraits.draw(2, 3)])
    large = upscaler.upscale(small)
    assert isinstance(upscaler, Upscaler)
    assert large.shape == (2, 3, 112, 112)
    assert large.dtype == np.uint8
    for before, after in zip(small, large, strict=True):
        again = resized(after, 28).astype(float)
        assert np.abs(again - before).mean() < 12
        for channel in range(3):  # each colour in its place
            assert np.corrcoef(again[channel].ravel(), before[channel].ravel())[0, 1] > 0.9
        assert roughness(after) > roughness(resized(before, 112))


def test_a_red_picture_stays_red(upscaler: RealESRGAN) -> None:
    red = np.zeros((1, 3, 8, 12), np.uint8)
    red[:, 0] = 230
    means = upscaler.upscale(red).mean((0, 2, 3))
    assert means[0] > 180
    assert max(means[1:]) < 40


def test_an_image_does_not_depend_on_others(upscaler: RealESRGAN, picture: Images) -> None:
    images = np.stack([picture[0, :, start : start + 12, start : start + 16] for start in range(0, 80, 20)])
    together = upscaler.upscale(images)
    assert together.shape == (4, 3, 48, 64)
    assert np.array_equal(upscaler.upscale(images[::-1]), together[::-1])
    assert np.array_equal(upscaler.upscale(images[2:3]), together[2:3])


def test_grey_is_refused(upscaler: RealESRGAN) -> None:
    with pytest.raises(UserError, match=r"shape \(N, 3, height, width\)"):
        upscaler.upscale(np.zeros((1, 1, 8, 8), np.uint8))
