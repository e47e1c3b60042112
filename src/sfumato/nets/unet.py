"""The denoising network: a small U-Net on Haar coefficients, made for private training.

Three choices keep it cheap to train privately. It works on the bands of one Haar level, so a 28x28 image is a 14x14
problem of four channels. Its normalisation has no parameters of its own; scale and shift come from one linear layer on
the class and the noise level (FiLM, Perez et al. 2018). And it has few parameters, because the noise of private
training grows with the square root of their number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato.nets.film import film_silu


class UNetShape(NamedTuple):
    """The public constants of a `UNet`.

    Attributes:
        bands: input and output channels (four times the image's).
        guide: channels of the guide picture that is shown beside the noisy one (0 for none).
        classes: number of classes; 0 for an unconditional network.
        width: channels at full and half of the working resolution.
        blocks: residual blocks at full and half of the working resolution, on the way down and up together.
    """

    bands: int
    guide: int
    classes: int
    width: tuple[int, int] = (32, 64)
    blocks: tuple[int, int] = (2, 2)


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """`x + y` of channels-last tensors as they lie in memory (three times as quick as by their shapes)."""
    return (x.permute(0, 2, 3, 1) + y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _depth_to_space(x: Tensor) -> Tensor:
    """`(N, 4 C, h, w)` to `(N, C, 2 h, 2 w)`, channels-last in and out (PyTorch's pixel_shuffle is slow on both)."""
    n, channels, h, w = x.shape
    x = x.permute(0, 2, 3, 1).view(n, h, w, 2, 2, channels // 4)
    return x.transpose(2, 3).reshape(n, 2 * h, 2 * w, channels // 4).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """Two 3x3 convolutions around an identity path; each is preceded by norm, FiLM and SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = film.chunk(4, dim=1)
        h = self.conv1(film_silu(x, scale1, shift1))
        h = self.conv2(film_silu(h, scale2, shift2))
        return _sum(x, h)


class UNet(nn.Module):
    """Predicts the clean bands (up to EDM's scaling) from noisy ones.

    Rows never meet: the output of row i depends on row i alone, and no buffer changes in `forward`.
    """

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.shape = shape
        high, low = shape.width
        full, half = shape.blocks
        self.inlet = nn.Conv2d(shape.bands + shape.guide, high, 3, padding=1)
        self.down_blocks = nn.ModuleList(_Block(high) for _ in range(full // 2))
        self.down = nn.Conv2d(high, low, 2, stride=2)
        self.low_blocks = nn.ModuleList(_Block(low) for _ in range(half))
        self.up = nn.Conv2d(low, 4 * high, 1)
        self.up_blocks = nn.ModuleList(_Block(high) for _ in range(full - full // 2))
        self.outlet = nn.Conv2d(high, shape.bands, 3, padding=1)
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)  # type: ignore[arg-type]
        self._film_sizes = [4 * high] * (full // 2) + [4 * low] * half + [4 * high] * (full - full // 2)
        self.film = nn.Linear(shape.classes + _LEVEL_FEATURES, sum(self._film_sizes))
        nn.init.normal_(self.film.weight, std=0.02)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, level: Tensor, labels: Tensor | None = None, guide: Tensor | None = None) -> Tensor:
        """Maps noisy bands to the network's output.

        Args:
            x: `(N, bands, h, w)`, h and w even, of about unit variance.
            level: `(N,)`, a quarter of the logarithm of the noise level (EDM's c_noise).
            labels: `(N,)` integers in `[0, classes)`, or -1 for "no label".
            guide: `(N, guide, h, w)` or None where the shape has no guide.
        """
        features = _level_features(level)
        if self.shape.classes:
            assert labels is not None
            hot = (labels[:, None] == torch.arange(self.shape.classes, device=labels.device)).to(features.dtype)
            features = torch.cat((hot, features), dim=1)
        films = iter(self.film(features).split(self._film_sizes, dim=1))
        if self.shape.guide:
            assert guide is not None
            x = torch.cat((x, guide), dim=1)
        h = self.inlet(x.contiguous(memory_format=torch.channels_last))
        for block in self.down_blocks:
            h = block(h, next(films))
        skip = h
        h = self.down(h)
        for block in self.low_blocks:
            h = block(h, next(films))
        h = _sum(skip, _depth_to_space(self.up(h)))
        for block in self.up_blocks:
            h = block(h, next(films))
        output: Tensor = self.outlet(film_silu(h))
        return output


_LEVEL_FEATURES = 8


def _level_features(level: Tensor) -> Tensor:
    """`(N,)` to `(N, 8)`: bumps along the range of noise levels that training meets (ln s from about -5 to 5)."""
    centres = torch.linspace(-1.25, 1.25, _LEVEL_FEATURES, device=level.device)
    width = 2.5 / (_LEVEL_FEATURES - 1)
    return torch.exp(-(((level[:, None] - centres) / width) ** 2) / 2) * math.sqrt(2)
