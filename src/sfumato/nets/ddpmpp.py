"""DDPM++ (Song et al., ICLR 2021): the denoising network of the published private diffusion models.

PrivImage, DPDM and DPImageBench train this network, in EDM's preconditioning. Its residual blocks are BigGAN's: group
norm, SiLU and a 3x3 convolution twice, with the embedding of noise level and class added between them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HALF = math.sqrt(0.5)  # keeps the variance of a sum of two paths


class DDPMppShape(NamedTuple):
    """The public constants of a `DDPMpp`.

    Attributes:
        channels: of the pictures.
        side: height and width of the pictures; a multiple of 2 to the number of levels less one.
        classes: number of classes; 0 for an unconditional network.
        width: channels that the multiples multiply (nf); a multiple of 4.
        multiples: of the width at each level, each of half the resolution of the one before.
        attention: sides at which pixels attend to each other, besides the middle.
        blocks: residual blocks a level on the way down; one more on the way up.
    """

    channels: int
    side: int
    classes: int
    width: int = 32
    multiples: tuple[int, ...] = (2, 2)
    attention: tuple[int, ...] = (14,)
    blocks: int = 2


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _still(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that begins as zero, so its block begins as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class _Block(nn.Module):
    """BigGAN's residual block, which may halve or double the resolution."""

    def __init__(self, inner: int, outer: int, embedding: int, resample: int = 0) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = _norm(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.embed = nn.Linear(embedding, outer)
        self.norm2 = _norm(outer)
        self.conv2 = _still(nn.Conv2d(outer, outer, 3, padding=1))
        self.path = nn.Conv2d(inner, outer, 1) if inner != outer or resample else None

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample < 0:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self._resampled(F.silu(self.norm1(x)))
        h = self.conv1(h) + self.embed(embedding)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        x = self._resampled(x)
        output: Tensor = _HALF * ((x if self.path is None else self.path(x)) + h)
        return output


class _Attention(nn.Module):
    """Pixels attend to each other, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.out = _still(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (layer(h).flatten(2) for layer in (self.query, self.key, self.value))
        scores = torch.bmm(query.transpose(1, 2), key) / math.sqrt(x.shape[1])
        seen = torch.bmm(value, scores.softmax(-1).to(value.dtype).transpose(1, 2)).view_as(x)
        output: Tensor = _HALF * (x + self.out(seen))
        return output


class _Step(nn.Module):
    """A residual block and, where pixels attend to each other, attention after it."""

    def __init__(self, block: _Block, attention: int = 0, joins: bool = False) -> None:
        """`attention`: its channels, 0 for none. `joins`: whether the way up takes a skip here."""
        super().__init__()
        self.block, self.joins = block, joins
        self.attention = _Attention(attention) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h: Tensor = self.block(x, embedding)
        return h if self.attention is None else self.attention(h)


class DDPMpp(nn.Module):
    """Predicts clean pictures (up to EDM's scaling) from noisy ones. Rows never meet."""

    def __init__(self, shape: DDPMppShape) -> None:
        super().__init__()
        self.shape = shape
        width, embedding = shape.width, 4 * shape.width
        self.labels = nn.Embedding(shape.classes + 1, width) if shape.classes else None
        self.embed1 = nn.Linear(width, embedding)
        self.embed2 = nn.Linear(embedding, embedding)
        self.inlet = nn.Conv2d(shape.channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, here, side = [width], width, shape.side
        for level, multiple in enumerate(shape.multiples):
            if level:
                self.down.append(_Step(_Block(here, here, embedding, resample=-1)))
                skips.append(here)
                side //= 2
            for _ in range(shape.blocks):
                block, here = _Block(here, multiple * width, embedding), multiple * width
                self.down.append(_Step(block, here if side in shape.attention else 0))
                skips.append(here)
        self.middle = nn.ModuleList(
            (_Step(_Block(here, here, embedding), attention=here), _Step(_Block(here, here, embedding)))
        )
        for level, multiple in reversed(list(enumerate(shape.multiples))):
            for number in range(shape.blocks + 1):
                block, here = _Block(here + skips.pop(), multiple * width, embedding), multiple * width
                attends = number == shape.blocks and side in shape.attention
                self.up.append(_Step(block, here if attends else 0, joins=True))
            if level:
                self.up.append(_Step(_Block(here, here, embedding, resample=1)))
                side *= 2
        self.last_norm = _norm(here)
        self.outlet = _still(nn.Conv2d(here, shape.channels, 3, padding=1))

    def forward(self, x: Tensor, level: Tensor, labels: Tensor | None = None, guide: Tensor | None = None) -> Tensor:
        """Maps noisy pictures to the network's output.

        Args:
            x: `(N, channels, side, side)` of about unit variance.
            level: `(N,)`, a quarter of the logarithm of the noise level (EDM's c_noise).
            labels: `(N,)` integers in `[0, classes)`, or -1 for "no label".
            guide: not used; the published networks see none.
        """
        features = _positions(level, self.shape.width)
        if self.labels is not None:
            assert labels is not None
            features = features + self.labels(torch.where(labels < 0, self.shape.classes, labels))
        embedding = F.silu(self.embed2(F.silu(self.embed1(features))))
        skips = [self.inlet(x)]
        for step in self.down:
            skips.append(step(skips[-1], embedding))
        h = skips[-1]
        for step in self.middle:
            h = step(h, embedding)
        for step in self.up:
            h = step(torch.cat((h, skips.pop()), dim=1) if step.joins else h, embedding)
        output: Tensor = self.outlet(F.silu(self.last_norm(h)))
        return output


def _positions(level: Tensor, width: int) -> Tensor:
    """Sinusoids `(N, width)` of the noise level, with frequencies from 1 to 1/10,000 (Vaswani et al. 2017)."""
    frequencies = torch.exp(torch.linspace(0, -math.log(10_000), width // 2, device=level.device))
    angles = level[:, None].float() * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)
