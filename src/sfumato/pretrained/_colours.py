"""Colour words: which ones a text says, and which one a picture shows.

A picture has a colour if that colour covers most of its coloured area; outlines, shadows and the white ground do not
count. The bounds between hues are those of everyday names, not of any standard.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

HUES = {"red": 0, "orange": 30, "yellow": 52, "green": 120, "turquoise": 180, "blue": 222, "purple": 275, "pink": 330}
"""Colours with a hue, each with its own in degrees."""
COLOURS = (*HUES, "brown", "black", "grey", "white")
SYNONYMS = {
    "gray": "grey",
    "teal": "turquoise",
    "cyan": "turquoise",
    "violet": "purple",
    "lilac": "purple",
    "magenta": "pink",
    "golden": "yellow",
    "crimson": "red",
    "scarlet": "red",
    "navy": "blue",
}
_EDGES = (
    *((16, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (196, "turquoise"), (252, "blue")),
    *((298, "purple"), (342, "pink"), (361, "red")),
)
_WORD = re.compile(rf"\b({'|'.join((*COLOURS, *SYNONYMS))})(?:ish)?\b", re.IGNORECASE)
COVER = 0.62  # of the coloured area
COLOURED = 0.3  # of what is not ground


def colours_in(text: str) -> list[str]:
    """The colours that a text names, in order, each once."""
    found = (word.lower() for word in _WORD.findall(text))
    return list(dict.fromkeys(SYNONYMS.get(word, word) for word in found))


def without_colours(text: str) -> str:
    """A text without its colour words; the text itself if nothing else would be left (an orange is a fruit too)."""
    bare = " ".join(_WORD.sub(" ", text).split())
    return bare if re.sub(r"\b(an?|the|some|and|or|with|of|in)\b", " ", bare.lower()).strip(" ,.:;!") else text


def colour_of(images: NDArray[np.uint8]) -> list[str | None]:
    """The one colour of each picture, or None.

    Args:
        images: uint8 `(N, H, W, 3)` on white ground.
    """
    pixels = images.reshape(len(images), -1, 3).astype(np.float32) / 255
    value, low = pixels.max(2), pixels.min(2)
    chroma = value - low
    saturation = chroma / np.maximum(value, 1e-6)
    hue = hues(pixels)
    object_ = low < 0.93
    coloured = object_ & (saturation > 0.25) & (value > 0.22)
    names = np.array([name for _, name in _EDGES])[np.searchsorted([edge for edge, _ in _EDGES], hue, side="right")]
    # Dark and dull orange is brown; pale red is pink.
    names = np.where(((names == "orange") | (names == "red")) & (value < 0.68) & (hue > 8) & (hue < 42), "brown", names)
    names = np.where((names == "red") & (value > 0.8) & (saturation < 0.45), "pink", names)
    results: list[str | None] = []
    for i in range(len(pixels)):
        area, tinted = int(object_[i].sum()), int(coloured[i].sum())
        if area < 40:
            results.append(None)
        elif tinted >= COLOURED * area:
            found, counts = np.unique(names[i][coloured[i]], return_counts=True)
            results.append(str(found[counts.argmax()]) if counts.max() > COVER * tinted else None)
        elif tinted < 0.1 * area:
            shades = np.digitize(value[i][object_[i]], (0.25, 0.86))
            counts = np.bincount(shades, minlength=3)
            results.append(("black", "grey", "white")[counts.argmax()] if counts.max() > COVER * area else None)
        else:
            results.append(None)
    return results


def hues(pixels: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Hue in degrees, [0, 360), of `(..., 3)` RGB values; 0 for grey."""
    value, chroma = pixels.max(-1), np.ptp(pixels, axis=-1)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    safe = np.maximum(chroma, 1e-6)
    sector = np.where(
        value == red,
        (green - blue) / safe % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return np.where(chroma > 1e-6, sector * 60 % 360, 0).astype(np.float32)


def recoloured(image: NDArray[np.uint8], colour: str) -> NDArray[np.uint8] | None:
    """The same drawing with its main colour exchanged; None if it has no area that could take another.

    Pixels near the commonest hue change; where next to nothing has a hue, as in line art, what the lines enclose does.

    Args:
        image: uint8 `(H, W, 3)` on white ground.
        colour: one of `COLOURS`.
    """
    pixels = image.astype(np.float32) / 255
    value, low = pixels.max(2), pixels.min(2)
    saturation = (value - low) / np.maximum(value, 1e-6)
    hue = hues(pixels)
    object_ = low < 0.93
    tinted = object_ & (saturation > 0.2) & (value > 0.15)
    if tinted.sum() > 0.25 * object_.sum():
        angles = np.exp(1j * np.radians(hue[tinted])) * (saturation * value)[tinted]
        counts = np.histogram(hue[tinted], 36, (0, 360), weights=np.abs(angles))[0]
        counts = counts + np.roll(counts, 1) + np.roll(counts, -1)
        main = 10 * int(counts.argmax()) + 5
        away = (hue - main + 180) % 360 - 180
        chosen = tinted & (np.abs(away) < 38)
        bright = value
    else:
        labels, _ = ndimage.label(value > 0.35)
        rim = np.unique(np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1])))
        chosen = (labels > 0) & (~np.isin(labels, rim) | (object_ & (saturation < 0.2)))
        away, bright = np.zeros_like(hue), np.minimum(value, 0.9)
        saturation = np.where(chosen, 0.75, saturation)
    if chosen.sum() < 0.2 * (object_ | chosen).sum() or chosen.sum() < 60:
        return None
    if colour in HUES:
        goal_hue = HUES[colour] + 0.3 * away
        goal_saturation = np.clip(saturation * 1.1, 0.5, 1) * (0.75 if colour == "pink" else 1)
        light = colour in ("yellow", "orange", "pink", "turquoise")
        goal_value = 1 - (1 - bright) * 0.45 if light else np.clip(bright * 0.95, 0.3, 1)
    else:
        goal_hue = np.full_like(hue, 24.0)
        level = {
            "brown": (0.62, 0.6, 0.0),
            "black": (0.1, 0.22, 0.0),
            "grey": (0.03, 0.45, 0.2),
            "white": (0.03, 0.2, 0.78),
        }
        tint, scale, base = level[colour]
        goal_saturation, goal_value = np.full_like(hue, tint), base + scale * bright
    sector = (goal_hue[..., None] / 60 + np.array([5, 3, 1])) % 6
    part = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    goal = goal_value[..., None] * (1 - goal_saturation[..., None] * part)
    return np.round(np.where(chosen[..., None], goal, pixels) * 255).astype(np.uint8)
