"""A small autoencoder: 64 x 64 drawings to 8 x 8 latent vectors and back.

Two paths lead either way. One is linear on patches of 8 x 8 pixels and starts as the patches' principal components, so
the network reconstructs most of a picture before its first step. The other is a convolutional network that starts at
zero and learns what the linear path misses. A latent diffusion model (Rombach et al. 2022, "High-resolution image
synthesis with latent diffusion models") then works on 64 vectors instead of 12,288 values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 64  # pixels
PATCH = 8  # pixels
CHANNELS = 24
GRID = SIDE // PATCH
WIDTH = (64, 144)  # channels at a quarter and an eighth of the picture's resolution
BLOCKS = (2, 2)


class _Block(nn.Module):
    """Two 3x3 convolutions around an identity path that starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        _zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.conv2(F.silu(self.conv1(F.silu(x))))
        return output


class LatentAutoencoder(nn.Module):
    """Pictures in [-1, 1] to latents of about unit variance and back. Items of a batch never meet."""

    def __init__(self) -> None:
        super().__init__()
        high, low = WIDTH
        values = 3 * PATCH**2
        self.mean = nn.Parameter(torch.zeros(values))
        self.project = nn.Parameter(torch.zeros(CHANNELS, values))
        self.expand = nn.Parameter(torch.zeros(values, CHANNELS))
        self.register_buffer("shift", torch.zeros(CHANNELS))
        self.register_buffer("scale", torch.ones(()))
        self.shift: Tensor
        self.scale: Tensor
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, high, 3, padding=1),
            *(_Block(high) for _ in range(BLOCKS[0])),
            nn.Conv2d(high, low, 2, stride=2),
            *(_Block(low) for _ in range(BLOCKS[1])),
            _zero(nn.Conv2d(low, CHANNELS, 1)),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, low, 3, padding=1),
            *(_Block(low) for _ in range(BLOCKS[1])),
            nn.Conv2d(low, 4 * high, 1),
            nn.PixelShuffle(2),
            *(_Block(high) for _ in range(BLOCKS[0] + 1)),
            _zero(nn.Conv2d(high, 48, 3, padding=1)),
            nn.PixelShuffle(4),
        )

    @torch.no_grad()
    def start(self, pictures: Tensor) -> None:
        """Sets the linear path to the principal components of pictures `(N, 3, 64, 64)` in [-1, 1].

        A component is divided by the square root of its deviation and the whole by a constant: coarse structure keeps
        more variance than detail, so that a diffusion model settles it first and pays more for its errors.
        """
        patches = F.pixel_unshuffle(pictures, PATCH).movedim(1, -1).reshape(-1, len(self.mean)).double()
        mean = patches.mean(0)
        variances, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        deviations = variances.flip(0)[:CHANNELS].sqrt()
        basis = directions.flip(1)[:, :CHANNELS]
        scales = deviations.rsqrt() / deviations.mean().sqrt()
        self.mean.copy_(mean)
        self.project.copy_((basis * scales).T)
        self.expand.copy_(basis / scales)

    @torch.no_grad()
    def standardise(self, pictures: Tensor) -> None:
        """Makes latents have mean 0 in every channel and variance 1 over all; what is decoded stays the same."""
        self.shift.zero_()
        self.scale.fill_(1.0)
        latents = torch.cat([self.encode(part) for part in torch.split(pictures, 64)]).float()
        self.shift.copy_(latents.mean((0, 2, 3)))
        self.scale.copy_((latents - self.shift[:, None, None]).std())

    def encode(self, pictures: Tensor) -> Tensor:
        """`(N, 3, 64, 64)` in [-1, 1] to `(N, 24, 8, 8)`."""
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        patches = F.pixel_unshuffle(pictures, PATCH) - self.mean[:, None, None]
        linear = F.conv2d(patches, self.project[:, :, None, None])
        latents: Tensor = (linear + self.encoder(pictures) - self.shift[:, None, None]) / self.scale
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """`(N, 24, 8, 8)` to `(N, 3, 64, 64)`, not clipped."""
        latents = (latents * self.scale + self.shift[:, None, None]).contiguous(memory_format=torch.channels_last)
        linear = F.conv2d(latents, self.expand[:, :, None, None]) + self.mean[:, None, None]
        return F.pixel_shuffle(linear, PATCH) + self.decoder(latents)  # type: ignore[no-any-return]


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
