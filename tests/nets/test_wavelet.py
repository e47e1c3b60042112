"""Haar by slices: orthonormal, exactly invertible, LL is the block mean, and as PyWavelets has it."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sfumato.nets.wavelet import haar, haar_approximation, haar_scales, inverse_haar, inverse_haar_scales


@given(n=st.integers(1, 3), channels=st.integers(1, 4), height=st.integers(1, 6), width=st.integers(1, 6))
def test_inverse_and_energy(n: int, channels: int, height: int, width: int) -> None:
    images = torch.randn(n, channels, 2 * height, 2 * width, dtype=torch.float64)
    bands = haar(images)
    assert bands.shape == (n, 4 * channels, height, width)
    assert torch.allclose(inverse_haar(bands), images, atol=1e-12)
    assert torch.allclose(bands.square().sum(), images.square().sum())


def test_bands_of_one_block() -> None:
    a, b, c, d = 7.0, 3.0, 2.0, 1.0
    bands = haar(torch.tensor([[[a, b], [c, d]]]))[:, 0, 0].tolist()
    assert bands == [(a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]


def test_low_band_is_the_mean_of_each_block() -> None:
    images = torch.randn(2, 3, 8, 10)
    assert torch.allclose(haar(images)[:, :3] / 2, F.avg_pool2d(images, 2), atol=1e-6)


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_several_levels_are_those_of_pywavelets(levels: int) -> None:
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    scales = haar_scales(images, levels)
    low, *details = pywt.wavedec2(images.numpy(), "haar", level=levels, axes=(-2, -1))
    assert len(scales) == levels + 1
    assert np.allclose(scales[0], low, atol=1e-12)
    for scale, bands in zip(scales[1:], details, strict=True):
        assert np.allclose(scale, np.concatenate(bands, axis=-3), atol=1e-12)
    assert torch.allclose(inverse_haar_scales(scales), images, atol=1e-12)
    assert np.allclose(inverse_haar_scales(scales), pywt.waverec2([low, *details], "haar", axes=(-2, -1)), atol=1e-12)


def test_the_first_scales_give_a_thumbnail() -> None:
    images = torch.rand(2, 1, 16, 16)
    scales = haar_scales(images, 3)
    for known in (1, 2, 3, 4):
        left = 4 - known
        assert torch.allclose(inverse_haar_scales(scales[:known]) / 2**left, F.avg_pool2d(images, 2**left), atol=1e-5)


def test_whole_numbers_are_transformed_exactly() -> None:
    images = torch.randint(0, 256, (4, 3, 64, 64))
    single, double = haar_scales(images.float(), 4), haar_scales(images.double(), 4)
    for one, other in zip(single, double, strict=True):
        assert torch.equal(one.double(), other)
        assert torch.equal(one * 2**4, (one * 2**4).round())
    assert torch.equal(inverse_haar_scales(single), images.float())


@pytest.mark.parametrize("levels", [0, 1, 2, 3, 5])
def test_the_approximation_alone_is_the_same_to_the_bit(levels: int) -> None:
    images = torch.randint(0, 256, (3, 2, 64, 32), generator=torch.Generator().manual_seed(levels)).float()
    assert torch.equal(haar_approximation(images, levels), haar_scales(images, levels)[0])
