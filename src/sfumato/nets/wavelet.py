"""Orthonormal two-dimensional Haar wavelets by slices.

For each 2x2 block `[a b; c d]` (rows top to bottom): `LL = (a+b+c+d)/2`, `LH = (a+b-c-d)/2`, `HL = (a-b+c-d)/2`,
`HH = (a-b-c+d)/2`. The 4x4 matrix is orthonormal and its own inverse, so sums of squares are kept and `LL / 2` is the
mean of the block.
"""

from __future__ import annotations

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
