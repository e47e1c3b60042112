"""Noisy lines, down, across or both: images that a convolution tells apart and single pixels do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.release import Provenance, Samples

CLASSES = ("down", "across", "both")


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy lines on 12 x 12 pixels, anywhere: down, across or both."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 90, (count, 1, 12, 12)).astype(np.uint8)
    labels = np.arange(count) % 3
    for image, label, (x, y) in zip(pixels, labels, generator.integers(0, 12, (count, 2)), strict=True):
        if label != 1:
            image[0, :, x] += 150
        if label != 0:
            image[0, y, :] = 200
    return pixels, labels


def samples(count: int = 256, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Samples:
    return Samples(*pictures(count, seed), classes, None, Provenance("run", "test", {}))


def folder_of(place: Path, count: int = 90, seed: int = 1, classes: tuple[str, ...] = CLASSES) -> Path:
    for index, (image, label) in enumerate(zip(*pictures(count, seed), strict=True)):
        (place / classes[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(place / classes[label] / f"{index:03}.png")
    return place
