"""What the captioner sees of a drawing: features of an ImageNet classifier, and where which colours are.

The classifier was trained on photographs of 224 pixels; drawings of 64 pixels are shown to it at 128, which is three
times as fast. Features of earlier layers are kept beside its last ones: drawings differ from photographs most in what
the last layers look for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.pretrained._networks import check_images, in_batches, resized, with_weights
from sfumato.pretrained.efficientnet import MEAN, SCALE, Network
from sfumato.pretrained.interfaces import Images

DRAWING = 64  # pixels of the drawings that were learned from
SIDE = 128  # pixels that the classifier is shown
BATCH = 4
GROUND = 250  # brighter than this in all channels is paper
MARGIN = 0.04  # of paper around a drawing, of its longer side
TILES = 4  # of the colour map, a side
# Block of the classifier and its channels.
TAPS = ((10, 112), (14, 192), (15, 320))
HEAD = 1280
CLASSES = 1000
FEATURES = 2 * HEAD + 112 + 192 + 2 * 320
COLOURS = 3 * TILES**2


class _Tapped(nn.Module):
    """The classifier's features and those of earlier blocks: means over the picture, and the largest values."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Uint8 `(N, 3, side, side)` to `(N, FEATURES)`."""
        x = ((pixels.float() - MEAN) / SCALE).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.network.stem(x))
        found: list[Tensor] = []
        for number, block in enumerate(self.network.blocks):
            x = block(x)
            if number in (tap for tap, _ in TAPS):
                found.append(x.mean((2, 3)))
        found.append(x.amax((2, 3)))
        head = F.relu6(self.network.head(x))
        return torch.cat([head.mean((2, 3)), head.amax((2, 3)), *found], 1)


class Eyes:
    """Images to features; each image is looked at alone.

    Args:
        folder: of the pulled model efficientnet-lite0.
    """

    def __init__(self, folder: Path) -> None:
        network = with_weights(Network, load_file(folder / "weights.safetensors"))
        self._classes = network.classes
        self._tapped = _Tapped(network)

    def see(self, images: Images) -> NDArray[np.float32]:
        """Features of images of any one size, `(N, FEATURES + COLOURS)`.

        Raises:
            UserError: not uint8 images `(N, 1 or 3, H, W)`.
        """
        drawings = squared(images, DRAWING)
        features = in_batches(self._tapped, resized(drawings, SIDE), BATCH, (FEATURES,))
        return np.concatenate([features, colour_map(drawings)], 1)

    def classes(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """ImageNet's 1,000 classes in what was seen: probabilities `(N, 1000)`."""
        logits = in_batches(self._classes, features[:, :HEAD], BATCH, (CLASSES,))
        chances: NDArray[np.float32] = torch.from_numpy(logits).softmax(1).numpy()
        return chances


def squared(images: Images, side: int) -> Images:
    """Drawings cut out of the paper around them and centred in a white square, `(N, 3, side, side)`.

    A picture without white ground becomes whole, with a thin white border.

    Args:
        images: uint8 `(N, 1 or 3, H, W)`.
        side: of the result, pixels.

    Raises:
        UserError: not such images.
    """
    check_images(images, (1, 3))
    out = np.empty((len(images), 3, side, side), np.uint8)
    for image, place in zip(images, out, strict=True):
        drawn = (image < GROUND).any(0)
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        if not len(rows):  # blank
            place[:] = 255
            continue
        part = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = part.shape[1:]
        across = round(max(height, width) * (1 + 2 * MARGIN))
        square = np.full((across, across, 3), 255, np.uint8)
        top, left = (across - height) // 2, (across - width) // 2
        square[top : top + height, left : left + width] = part.transpose(1, 2, 0)
        picture = Image.fromarray(square).resize((side, side), Image.Resampling.LANCZOS)
        place[:] = np.asarray(picture).transpose(2, 0, 1)
    return out


def colour_map(drawings: Images) -> NDArray[np.float32]:
    """Mean colours of 4 x 4 tiles in [0, 1], `(N, 48)`, from drawings `(N, 3, side, side)`."""
    count, channels, side, _ = drawings.shape
    tiles = drawings.reshape(count, channels, TILES, side // TILES, TILES, side // TILES).astype(np.float32)
    means: NDArray[np.float32] = tiles.mean((3, 5)).reshape(count, COLOURS) / 255
    return means
