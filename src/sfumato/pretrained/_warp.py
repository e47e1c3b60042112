"""Small drawings turned, stretched, moved and mirrored a little, on white ground."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TURN = 12.0  # degrees
SHEAR = 0.1
SMALLER, LARGER = 0.25, 0.05  # how much a side may shrink or grow
MOVE = 2.0  # pixels
MIRRORED = 0.5  # chance


def warped(image: NDArray[np.uint8], random: np.random.Generator, amount: float = 1.0) -> NDArray[np.uint8]:
    """A drawing with another stance.

    Args:
        image: uint8 `(H, H, 3)` on white ground.
        random: chooses.
        amount: 0 to 1, the share of the largest changes that may happen; below a half nothing is mirrored.
    """
    side = len(image)
    angle = np.radians(random.uniform(-TURN, TURN)) * amount
    shear = random.uniform(-SHEAR, SHEAR) * amount
    width, height = 1 + random.uniform(-LARGER, SMALLER, 2) * amount  # of the window that is shown
    mirror = -1 if random.random() < MIRRORED and amount >= 0.5 else 1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[mirror * width, shear], [0, height]])
    middle = np.full(2, side / 2)
    offset = middle - matrix @ (middle + random.uniform(-MOVE, MOVE, 2) * amount)
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    picture = Image.fromarray(np.ascontiguousarray(image)).transform(
        (side, side), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)
    )
    return np.asarray(picture)
