"""Features that nobody has to learn in private: how strong edges of each direction and size are, place by place.

Scattering coefficients of first and second order (Bruna, Mallat 2013, "Invariant Scattering Convolution Networks"),
taken on a pyramid of halved pictures instead of with ever larger wavelets. Under differential privacy a linear model on
such features does better than a network that has to learn its own (Tramer, Boneh 2021, "Differentially Private Learning
Needs Better Features"). It does better still on few of them, as every weight brings noise of its own: on the directions
in which the features of public pictures differ most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIRECTIONS = 8
KEPT = 512
"""Coordinates of what a linear layer sees, at most."""
_CELLS = 8  # at most, along a side
_REACH = 3  # pixels from a wavelet's middle to its edge
_WIDTH, _FREQUENCY, _SLANT = 0.8, 3 * math.pi / 4, 0.5
_FLAT = 1e-4  # variance of a map, on pixels in [-1, 1], below which it is taken to show nothing
_LOUDNESS = 10.0  # norm of what the linear layer sees: with it, moderate weights give any odds
_TINY = 1e-3  # spread, of the largest, below which a direction is taken to be rounding


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
    """Features of a picture, from fixed wavelets; every map is standardised alone.

    Maps are, colour by colour, brightness and the edges of each direction and size; and edges among the strengths of
    those edges, at each larger size (second order), of the mean of the colours.

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
        first = channels * (1 + self.levels * DIRECTIONS)
        second = math.comb(self.levels, 2) * DIRECTIONS**2
        self.dimensions = (first + second) * self.cells[0] * self.cells[1]
        complex_pair = torch.view_as_real(morlet_wavelets()).movedim(-1, 0).flatten(0, 1)
        self.register_buffer("wavelets", complex_pair.float(), persistent=False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """`(N, dimensions)` of norm at most 1 for pictures `(N, C, H, W)` in [-1, 1]."""
        count, channels = pictures.shape[:2]
        one = pictures.flatten(0, 1)[:, None]
        maps, finer = [self._places(one, count)], list[Tensor]()
        for _ in range(self.levels):
            finer = [_halved(strength) for strength in finer]
            maps += [self._places(self._edges(strength.flatten(0, 1)[:, None]), count) for strength in finer]
            edges = self._edges(one)
            maps.append(self._places(edges, count))
            finer.append(edges.reshape(count, channels, *edges.shape[1:]).mean(1))
            one = _halved(one)
        found = torch.cat(maps, dim=1)
        variance, mean = torch.var_mean(found, dim=(2, 3), correction=0, keepdim=True)
        return ((found - mean) / (variance + _FLAT).sqrt()).flatten(1) / math.sqrt(self.dimensions)

    def _edges(self, one: Tensor) -> Tensor:
        """Their strength, `(N, DIRECTIONS, H, W)`, in pictures of one channel."""
        waves = F.conv2d(F.pad(one, (_REACH,) * 4, mode="replicate"), self.wavelets).square_()
        return waves[:, :DIRECTIONS].add_(waves[:, DIRECTIONS:]).sqrt_()

    def _places(self, maps: Tensor, count: int) -> Tensor:
        """Means by place, all maps of a picture together: `(count, maps, *cells)`."""
        return F.adaptive_avg_pool2d(maps, self.cells).reshape(count, -1, *self.cells)


def _halved(pictures: Tensor) -> Tensor:
    return F.avg_pool2d(pictures, 2, ceil_mode=True)


def kept(image: tuple[int, int, int]) -> int:
    """Coordinates of what a `ScatteringClassifier` sees in pictures `(C, H, W)`."""
    return min(KEPT, Scattering(image).dimensions)


class ScatteringClassifier(nn.Module):
    """A linear classifier on few coordinates of `Scattering` features; starts from zero, so has no random weights.

    Attributes:
        features: the fixed part.
        mean: `(dimensions,)`, of the features of public pictures.
        directions: `(dimensions, kept)`, scaled; fixed once public pictures were looked at, zero before.
        head: the trained part.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, image: tuple[int, int, int], classes: int) -> None:
        """`image`: `(C, H, W)` of the pictures."""
        super().__init__()
        self.features = Scattering(image)
        dimensions = self.features.dimensions
        self.register_buffer("mean", torch.zeros(dimensions))
        self.register_buffer("directions", torch.zeros(dimensions, kept(image)))
        self.head = nn.Linear(kept(image), classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def look_at(self, public: Iterable[Tensor], seed: int) -> None:
        """Takes mean and principal directions from public pictures, parts of them `(n, C, H, W)` in [-1, 1].

        A direction's scale is the root of what would whiten it: whitened in full, those that hardly differ would be
        nothing but noise.
        """
        features = torch.cat([self.features(part) for part in public])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            rank = min(self.directions.shape[1], len(features))
            _, spread, directions = torch.pca_lowrank(features, rank, niter=4)
        self.mean.copy_(features.mean(0))
        least = _TINY * max(1.0, float(spread[0]))  # pictures that are all alike have no spread
        self.directions[:, :rank] = directions / spread.clamp(min=least).sqrt()

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores `(N, classes)` for pictures `(N, C, H, W)` in [-1, 1]."""
        with torch.no_grad():
            seen = F.normalize((self.features(pictures) - self.mean) @ self.directions)
        scores: Tensor = self.head(_LOUDNESS * seen)
        return scores
