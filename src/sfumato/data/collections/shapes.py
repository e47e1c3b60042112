"""Geometric shapes drawn by code, in colour, 64 x 64, each with a caption that says what is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.data.collections._folder import Collection, PictureFolder

COUNT = 500  # of each shape
SIDE = 64  # pixels
SCALE = 3  # drawn so much larger, then averaged
SEED = 20_260_101
LICENCE = "CC0-1.0"
LICENCE_TEXT = """\
Drawn by Sfumato. To the extent possible under law, its authors have waived all copyright and related or neighbouring
rights to these pictures: CC0 1.0, https://creativecommons.org/publicdomain/zero/1.0/
"""
COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 26),
    "yellow": (250, 215, 50),
    "green": (44, 150, 60),
    "turquoise": (40, 190, 190),
    "blue": (40, 90, 200),
    "purple": (130, 60, 170),
    "pink": (240, 140, 190),
    "brown": (125, 75, 45),
    "black": (20, 20, 20),
    "grey": (135, 135, 135),
    "white": (245, 245, 245),
}
Plane = np.ndarray[Any, np.dtype[Any]]  # coordinates or truth values of every pixel, (side, side)


def _polygon(x: Plane, y: Plane, corners: int, inner: float = 1.0) -> Plane:
    """A regular polygon of circumradius 1 with a corner on top, or with `inner` below 1 a star of that inner radius."""
    points = 2 * corners if inner < 1 else corners
    angles = np.pi / 2 + 2 * np.pi * np.arange(points) / points
    radii = np.where(np.arange(points) % 2, inner, 1.0)
    px, py = radii * np.cos(angles), -radii * np.sin(angles)
    inside = np.zeros(x.shape, bool)  # even-odd rule
    for x0, y0, x1, y1 in zip(px, py, np.roll(px, -1), np.roll(py, -1), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def _disc(x: Plane, y: Plane) -> Plane:
    return np.asarray(x**2 + y**2 < 1)


def _box(x: Plane, y: Plane, width: float = 0.8, height: float = 0.8) -> Plane:
    return np.asarray((np.abs(x) < width) & (np.abs(y) < height))


# Each shape is a set of points of the plane, about as large as the unit disc; y points down.
SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _disc,
    "ellipse": lambda x, y: _disc(x, 1.8 * y),
    "ring": lambda x, y: _disc(x, y) & ~_disc(x / 0.6, y / 0.6),
    "half circle": lambda x, y: _disc(x, y + 0.4) & (y + 0.4 > 0),
    "crescent": lambda x, y: _disc(x, y) & ~_disc((x - 0.45) / 0.85, y / 0.85),
    "triangle": lambda x, y: _polygon(x, y, 3),
    "square": _box,
    "rectangle": lambda x, y: _box(x, y, 0.95, 0.5),
    "diamond": lambda x, y: np.abs(x) / 0.7 + np.abs(y) < 1,
    "pentagon": lambda x, y: _polygon(x, y, 5),
    "hexagon": lambda x, y: _polygon(x, y, 6),
    "star": lambda x, y: _polygon(x, y, 5, 0.4),
    "six-pointed star": lambda x, y: _polygon(x, y, 6, 0.577),
    "cross": lambda x, y: _box(x, y, 0.95, 0.3) | _box(x, y, 0.3, 0.95),
    "arrow": lambda x, y: _box(x + 0.4, y, 0.55, 0.22) | ((x > 0) & (np.abs(y) < 0.75 * (1 - x / 0.95)) & (x < 0.95)),
    "heart": lambda x, y: (
        ((1.2 * x) ** 2 + (1.2 * y - 0.1) ** 2 - 0.9) ** 3 + 1.4 * (1.2 * x) ** 2 * (1.2 * y) ** 3 < 0
    ),
    "drop": lambda x, y: _disc(x / 0.6, (y - 0.35) / 0.6) | ((y < 0.1) & (np.abs(x) < 0.34 * (y + 1) / 0.68)),
    "stripes": lambda x, y: _box(x, y, 0.9, 0.9) & (np.mod(5 * x / 1.8 + 0.5, 1) < 0.5),
    "dots": lambda x, y: (
        _box(x, y, 0.9, 0.9) & ((np.mod(x + 0.9, 0.6) - 0.3) ** 2 + (np.mod(y + 0.9, 0.6) - 0.3) ** 2 < 0.04)
    ),
    "checkerboard": lambda x, y: (
        _box(x, y, 0.9, 0.9) & ((np.floor((x + 0.9) / 0.45) + np.floor((y + 0.9) / 0.45)) % 2 > 0)
    ),
}
UPRIGHT = {"half circle", "crescent", "arrow", "heart", "drop"}  # turned a little only, or the name would mislead


def write(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes the set; `archives` is not used."""
    pictures = PictureFolder(folder, progress)
    for shape in SHAPES:
        for number in range(COUNT):
            random = np.random.default_rng([SEED, list(SHAPES).index(shape), number])
            picture, text = draw(shape, random)
            pictures.add(picture, f"sfumato: {shape} {number:04}", shape, text, licence=LICENCE)
    pictures.finish("shapes", LICENCE_TEXT)


def draw(shape: str, random: np.random.Generator) -> tuple[Image.Image, str]:
    """One picture, RGB, 64 x 64, and its caption.

    Args:
        shape: one of `SHAPES`.
        random: chooses colours, size, place, angle and shade.
    """
    colour, ground = random.choice(list(COLOURS), 2, replace=False)
    size = random.choice(["small", "medium-sized", "large"])
    radius = {"small": 0.38, "medium-sized": 0.6, "large": 0.85}[size] * random.uniform(0.9, 1.1)
    angle = np.radians(random.uniform(-20, 20) if shape in UPRIGHT else random.uniform(-180, 180))
    move = random.uniform(-1, 1, 2) * max(0.0, 1 - radius) * 0.8
    y, x = (np.mgrid[: SIDE * SCALE, : SIDE * SCALE] + 0.5) / (SIDE * SCALE) * 2 - 1
    x, y = (x - move[0]) / radius, (y - move[1]) / radius
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = SHAPES[shape](x, y)[..., None]
    shades = [np.clip(np.array(COLOURS[name]) + random.normal(0, 12, 3), 0, 255) for name in (colour, ground)]
    pixels = np.where(inside, *shades).astype(np.uint8)
    several = shape in ("stripes", "dots")
    article = "" if several else "an " if size[0] in "aeiou" else "a "
    return Image.fromarray(pixels).reduce(SCALE), f"{article}{size} {colour} {shape} on a {ground} background"


COLLECTION = Collection(
    "shapes", "geometric shapes in colour with captions, drawn by code, 64 x 64", LICENCE, COUNT * len(SHAPES), 0, write
)
