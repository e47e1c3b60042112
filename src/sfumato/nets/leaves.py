"""Dead leaves: pictures of nothing, whose edges are like those of pictures of something.

Opaque shapes of all sizes fall on each other (Lee, Mumford, Huang 2001, "Occlusion Models for Natural Images"); what
networks learn from them holds for photographs (Baradad et al. 2021, "Learning to See by Looking at Noise").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEAVES = 12
_SIZES = 0.07, 0.64  # radii, of the shorter side; small ones are common
_LONGEST = 3.0  # of their length to their width


def dead_leaves(count: int, image: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Pictures uint8 `(count, C, H, W)`."""
    channels, height, width = image
    down, right = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    least, most = (share * min(height, width) for share in _SIZES)

    def chance(many: int = 1) -> Tensor:
        return torch.rand(count, many, 1, 1, generator=generator)

    pictures = 255 * chance(channels).expand(-1, -1, height, width)
    for _ in range(_LEAVES):
        radius = 1 / (1 / most + chance() * (1 / least - 1 / most))
        angle, length = math.pi * chance(), 1 + (_LONGEST - 1) * chance()
        below, beside = down - height * chance(), right - width * chance()
        along = beside * angle.cos() + below * angle.sin()
        across = length * (below * angle.cos() - beside * angle.sin())
        covered = (radius - torch.hypot(along, across) + 0.5).clamp(0, 1)
        pictures = pictures + covered * (255 * chance(channels) - pictures)
    return pictures.round().to(torch.uint8)
