from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from sfumato.pretrained._networks import folded, in_batches, resized
from sfumato.pretrained.interfaces import Images


def test_folding_changes_nothing_but_rounding() -> None:
    generator = torch.Generator().manual_seed(1)
    kernel = torch.randn(5, 3, 3, 3, generator=generator)
    scale, shift, mean, variance = torch.rand(4, 5, generator=generator) + 0.5
    x = torch.randn(2, 3, 9, 9, generator=generator)
    expected = F.batch_norm(F.conv2d(x, kernel), mean, variance, scale, shift, eps=1e-3)
    merged = folded(kernel, scale, shift, mean, variance, 1e-3)
    torch.testing.assert_close(F.conv2d(x, merged["weight"], merged["bias"]), expected, atol=1e-5, rtol=1e-5)


def test_resizing_is_pillow_s_for_grey_and_colour(picture: Images) -> None:
    for side in (28, 224):
        expected = Image.fromarray(picture[0].transpose(1, 2, 0)).resize((side, side), Image.Resampling.BICUBIC)
        assert np.array_equal(resized(picture, side)[0], np.asarray(expected).transpose(2, 0, 1))
        grey = Image.fromarray(picture[0, 0]).resize((side, side), Image.Resampling.BICUBIC)
        assert np.array_equal(resized(picture[:, :1], side)[0], np.stack([np.asarray(grey)] * 3))
    assert resized(picture[:, :, :10], 16).shape == (1, 3, 16, 16)


def test_every_batch_has_one_shape() -> None:
    shapes = []

    def double(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return 2 * x.float()

    rows = np.arange(14).reshape(7, 2)
    assert np.array_equal(in_batches(double, rows, 3, (2,)), 2 * rows)
    assert shapes == [(3, 2)] * 3
    assert in_batches(double, rows[:0], 3, (2,)).shape == (0, 2)


def test_every_batch_has_one_core() -> None:
    cores, before = [], torch.get_num_threads()

    def count(x: torch.Tensor) -> torch.Tensor:
        cores.append(torch.get_num_threads())
        return x

    torch.set_num_threads(2)
    try:
        in_batches(count, np.zeros((4, 1), np.float32), 1, (1,))
        assert (cores, torch.get_num_threads()) == ([1] * 4, 2)
    finally:
        torch.set_num_threads(before)
