"""Features that nobody has to learn: how strong edges of each direction and size are, place by place.

First-order scattering coefficients (Bruna, Mallat 2013, "Invariant Scattering Convolution Networks"), taken on a
pyramid of halved pictures instead of with ever larger wavelets. Under differential privacy a linear model on such
features does better than a network that has to learn its own (Tramer, Boneh 2021, "Differentially Private Learning
Needs Better Features").
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIRECTIONS = 8
_CELLS = 8  # at most, along a side
_REACH = 3  # pixels from a wavelet's middle to its edge
_WIDTH, _FREQUENCY, _SLANT = 0.8, 3 * math.pi / 4, 0.5
_FLAT = 1e-4  # variance of a map, on pixels in [-1, 1], below which it is taken to show nothing
_LOUDNESS = 10.0  # norm of what the linear layer sees: with it, moderate weights give any odds


def morlet_wavelets() -> Tensor:
    """Wavelets of all directions `(DIRECTIONS, 1, K, K)`, complex: a wave under a bell, of mean 0."""
    steps = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64)
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    found = []
    for number in range(DIRECTIONS):
        angle = math.pi * number / DIRECTIONS
        along = right * math.cos(angle) + down * math.sin(angle)
        across = down * math.cos(angle) - right * math.sin(angle)
        bell = torch.exp(-(along.square() + (_SLANT * across).square()) / (2 * _WIDTH**2))
        wave = torch.polar(torch.ones_like(along), _FREQUENCY * along)
        found.append(bell * (wave - (bell * wave).sum() / bell.sum()) / bell.sum())
    return torch.stack(found)[:, None]


class Scattering(nn.Module):
    """Features of a picture, from fixed wavelets; every map of one direction, size and colour is standardised alone.

    Attributes:
        cells: places along height and width.
        levels: sizes of edges, each twice the one before.
        dimensions: of the features.
    """

    wavelets: Tensor

    def __init__(self, image: tuple[int, int, int]) -> None:
        """`image`: `(C, H, W)`."""
        super().__init__()
        channels, height, width = image
        self.levels = max(1, math.ceil(math.log2(max(height, width) / _CELLS)))
        self.cells = (max(1, height >> self.levels), max(1, width >> self.levels))
        self.dimensions = channels * (1 + self.levels * DIRECTIONS) * self.cells[0] * self.cells[1]
        complex_pair = torch.view_as_real(morlet_wavelets()).movedim(-1, 0).flatten(0, 1)
        self.register_buffer("wavelets", complex_pair.float(), persistent=False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """`(N, dimensions)` of norm at most 1 for pictures `(N, C, H, W)` in [-1, 1]."""
        one = pictures.flatten(0, 1)[:, None]
        maps = [F.adaptive_avg_pool2d(one, self.cells)]
        for _ in range(self.levels):
            edges = F.conv2d(F.pad(one, (_REACH,) * 4, mode="replicate"), self.wavelets)
            strength = torch.hypot(edges[:, :DIRECTIONS], edges[:, DIRECTIONS:])
            maps.append(F.adaptive_avg_pool2d(strength, self.cells))
            one = F.avg_pool2d(one, 2, ceil_mode=True)
        found = torch.cat(maps, dim=1).reshape(len(pictures), -1, *self.cells)
        variance, mean = torch.var_mean(found, dim=(2, 3), correction=0, keepdim=True)
        return ((found - mean) / (variance + _FLAT).sqrt()).flatten(1) / math.sqrt(self.dimensions)


class ScatteringClassifier(nn.Module):
    """A linear classifier on `Scattering` features; starts from zero, so it has no random weights.

    Attributes:
        features: the fixed part.
        head: the trained part.
    """

    def __init__(self, image: tuple[int, int, int], classes: int) -> None:
        """`image`: `(C, H, W)` of the pictures."""
        super().__init__()
        self.features = Scattering(image)
        self.head = nn.Linear(self.features.dimensions, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores `(N, classes)` for pictures `(N, C, H, W)` in [-1, 1]."""
        scores: Tensor = self.head(_LOUDNESS * self.features(pictures))
        return scores
