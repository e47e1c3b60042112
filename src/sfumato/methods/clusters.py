"""Groups of public pictures that look alike: k-means on small grey versions, or on embeddings. Public data only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pictures `(N, C, H, W)` to vectors `(N, d)`."""

SIDE = 16  # pixels of the small versions
ROUNDS = 25
PART = 4096  # pictures compared at once


def small_versions(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 `(N, C, H, W)` to grey float `(N, at most 256)` in [-1, 1]."""
    height, width = (min(SIDE, side) for side in pixels.shape[2:])
    parts = [
        F.adaptive_avg_pool2d(
            torch.from_numpy(pixels[start : start + PART]).float().mean(1, keepdim=True), (height, width)
        )
        for start in range(0, len(pixels), PART)
    ]
    return torch.cat(parts).flatten(1) / 127.5 - 1


def cluster(
    pixels: NDArray[np.uint8],
    number: int,
    seed: int,
    embed: Embed | None = None,
) -> NDArray[np.int64]:
    """k-means (Lloyd 1982) from a k-means++ start (Arthur and Vassilvitskii 2007).

    Args:
        pixels: public pictures, uint8 `(N, C, H, W)`.
        number: clusters wanted, at least 1.
        seed: public.
        embed: gives the vectors `(N, d)` whose directions are compared; None compares small grey versions.

    Returns:
        Cluster of each picture, int64 `(N,)`. Clusters are numbered from 0 without gaps; there are fewer than `number`
        only if the pictures are not different enough.
    """
    points = small_versions(pixels) if embed is None else F.normalize(torch.from_numpy(embed(pixels)), dim=1)
    generator = torch.Generator().manual_seed(seed)
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    far = (points - centres).square().sum(1)
    while len(centres) < number and float(far.max()) > 0:
        chosen = torch.searchsorted(
            far.double().cumsum(0), torch.rand((), generator=generator).double() * far.double().sum()
        )
        centres = torch.cat((centres, points[int(chosen.clamp(max=len(points) - 1))][None]))
        far = torch.minimum(far, (points - centres[-1]).square().sum(1))
    for _ in range(ROUNDS):
        nearest = _nearest(points, centres)
        sizes = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
    numbers: NDArray[np.int64] = np.unique(_nearest(points, centres).numpy(), return_inverse=True)[1]
    return numbers.astype(np.int64)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    offset = centres.square().sum(1) / 2
    return torch.cat([(offset - part @ centres.T).argmin(1) for part in torch.split(points, PART)])
