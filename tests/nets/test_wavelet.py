"""Haar by slices: orthonormal, exactly invertible, LL is the block mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sfumato.nets.wavelet import haar, inverse_haar


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
