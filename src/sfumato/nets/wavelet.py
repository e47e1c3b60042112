"""Orthonormal two-dimensional Haar wavelets by slices.

For each 2x2 block `[a b; c d]` (rows top to bottom): `LL = (a+b+c+d)/2`, `LH = (a+b-c-d)/2`, `HL = (a-b+c-d)/2`,
`HH = (a-b-c+d)/2`. The 4x4 matrix is orthonormal and its own inverse, so sums of squares are kept and `LL / 2` is the
mean of the block. PyWavelets calls the three details of a level H, V and D, in this order.

On whole numbers from 0 to 255 all of it is exact in float32, up to 8 levels: every value is a multiple of `2^-levels`
below `2^(8 + levels)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def haar(images: Tensor) -> Tensor:
    """One level of the Haar transform.

    Args:
        images: `(..., C, H, W)` with even H and W.

    Returns:
        `(..., 4 C, H/2, W/2)`: the C channels of LL first, then those of LH, HL and HH.
    """
    a, b = images[..., 0::2, 0::2], images[..., 0::2, 1::2]
    c, d = images[..., 1::2, 0::2], images[..., 1::2, 1::2]
    top, bottom, left, right = a + b, c + d, a - b, c - d
    return torch.cat((top + bottom, top - bottom, left + right, left - right), dim=-3) / 2


def inverse_haar(bands: Tensor) -> Tensor:
    """Inverse of `haar`: `(..., 4 C, H, W)` to `(..., C, 2 H, 2 W)`."""
    low, vertical, horizontal, diagonal = bands.chunk(4, dim=-3)
    top, bottom = low + vertical, low - vertical
    left, right = horizontal + diagonal, horizontal - diagonal
    images = bands.new_empty((*low.shape[:-2], 2 * low.shape[-2], 2 * low.shape[-1]))
    images[..., 0::2, 0::2], images[..., 0::2, 1::2] = top + left, top - left
    images[..., 1::2, 0::2], images[..., 1::2, 1::2] = bottom + right, bottom - right
    return images / 2


def haar_scales(images: Tensor, levels: int) -> tuple[Tensor, ...]:
    """Several levels of the Haar transform, coarse to fine.

    Args:
        images: `(..., C, H, W)` with sides that are multiples of `2^levels`.
        levels: at least 0.

    Returns:
        `levels + 1` scales. The first is the approximation LL `(..., C, H/2^levels, W/2^levels)`: `2^levels` times the
        means of blocks. Each further one holds the details of a level, LH, HL and HH, `(..., 3 C, h, w)`, and is twice
        as large as the one before it, but for the second, which is as large as the first.
    """
    channels, details = images.shape[-3], []
    for _ in range(levels):
        bands = haar(images)
        images = bands[..., :channels, :, :]
        details.append(bands[..., channels:, :, :])
    return (images, *reversed(details))


def haar_approximation(images: Tensor, levels: int) -> Tensor:
    """The first of `haar_scales`, `(..., C, H/2^levels, W/2^levels)`; no finer band is formed on the way."""
    for _ in range(levels):
        images = images[..., 0::2, :] + images[..., 1::2, :]
        images = (images[..., 0::2] + images[..., 1::2]) / 2
    return images


def inverse_haar_scales(scales: Sequence[Tensor]) -> Tensor:
    """Inverse of `haar_scales`.

    Args:
        scales: the first of them, or all. Of the first k, it gives the approximation that is k - 1 levels finer.

    Returns:
        `(..., C, H, W)`; the image where all scales are given, else a thumbnail times `2^(levels left)`.
    """
    image, *details = scales
    for detail in details:
        image = inverse_haar(torch.cat((image, detail), dim=-3))
    return image
