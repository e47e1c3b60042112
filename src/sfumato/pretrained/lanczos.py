"""Lanczos resampling: an `Upscaler` without weights, which adds no detail; the reference for those that do."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sfumato.pretrained._networks import check_images
from sfumato.pretrained.interfaces import Identity, Images


def resized(images: Images, height: int, width: int) -> Images:
    """Uint8 `(N, 3, H, W)` to `(N, 3, height, width)` by Pillow's Lanczos filter, each image alone."""
    results = np.empty((len(images), images.shape[1], height, width), np.uint8)
    for image, place in zip(images, results, strict=True):
        large = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        place[:] = np.asarray(large.resize((width, height), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    return results


class Lanczos:
    """An `Upscaler`.

    Args:
        factor: by how much the sides grow.
    """

    identity = Identity("lanczos", "1", "", "MIT-CMU", "Pillow's Lanczos filter")

    def __init__(self, factor: int = 4) -> None:
        self.factor = factor

    def upscale(self, images: Images) -> Images:
        """Uint8 `(N, 3, H, W)` to uint8 `(N, 3, factor H, factor W)`.

        Raises:
            UserError: not such images.
        """
        check_images(images, (3,))
        return resized(images, self.factor * images.shape[2], self.factor * images.shape[3])
