"""The reference among upscalers: larger, with the same light, each image alone."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import UserError
from sfumato.pretrained.interfaces import Images, Upscaler
from sfumato.pretrained.lanczos import Lanczos, resized


def test_larger_by_its_factor(picture: Images) -> None:
    model: Upscaler = Lanczos(3)
    assert isinstance(model, Upscaler)
    smooth = np.broadcast_to(np.linspace(20, 230, 24).astype(np.uint8), (2, 3, 16, 24))
    large = model.upscale(smooth)
    assert large.shape == (2, 3, 48, 72)
    assert np.abs(large.reshape(2, 3, 16, 3, 24, 3).mean((3, 5)) - smooth).max() < 4
    assert np.array_equal(model.upscale(picture), Lanczos(3).upscale(np.concatenate([picture, picture]))[1:])


def test_any_size(picture: Images) -> None:
    assert resized(picture, 20, 31).shape == (1, 3, 20, 31)


def test_other_arrays_are_refused() -> None:
    with pytest.raises(UserError):
        Lanczos().upscale(np.zeros((1, 1, 8, 8), np.uint8))
