"""Things cut out of Open Clip Art, each alone on black: what a model may learn outlines and surfaces from.

Clip art as it comes stands on white, small or large, hollow where it is a line drawing. Private collections of objects
are seldom like that. Here every drawing of one thing loses its ground, fills its frame and gets surfaces: its own
colours, their negative, and three plain or patterned fabrics over its own shading.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from sfumato.data.collections import openclipart
from sfumato.data.collections._archives import Member, deb_members
from sfumato.data.collections._debian import fetch_debs
from sfumato.data.collections._folder import Collection, PictureFolder, transparent

SIDE = 64
WORKING = 128  # pixels of the longer side while a thing is cut out
SURFACES = ("own colours", "negative", "fabric 1", "fabric 2", "fabric 3")
SMALLEST, TURN, STRETCH = 0.8, 10.0, 1.25  # of the frame; degrees; of one side over the other
COVER = (0.12, 0.92)  # of its own frame that a thing covers; less is a line, more is a tile
ALONE = 0.8  # least share of the covered area that is in one piece
PART = 256  # files in memory at once
DIFFERENT = 24  # grey levels from the ground of an opaque drawing

Plane = np.ndarray[Any, np.dtype[Any]]


def write(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes the set. Labels are the top folders of Open Clip Art."""
    (package,) = fetch_debs((openclipart.PNG,), archives)
    pictures = PictureFolder(folder, progress)
    licence = b""
    with package.path.open("rb") as file, ThreadPoolExecutor() as threads:
        members = deb_members(file, openclipart.png_limit)
        while part := list(itertools.islice(members, PART)):
            for (name, data), thing in zip(part, threads.map(_drawn, part), strict=True):
                if name == openclipart.COPYRIGHT:
                    licence = data or b""
                    continue
                if thing is None:
                    pictures.skipped["not one thing with an outline"] += 1
                    continue
                stem = openclipart.stem(name)
                words = openclipart.caption(stem, openclipart.Description(), 0)
                for surface, picture in thing:
                    pictures.add(
                        picture,
                        f"{package.name} {package.version}: {stem}.png, {surface}",
                        openclipart.folders(stem)[0],
                        words,
                        licence=openclipart.LICENCE,
                    )
    pictures.finish("cutouts", licence.decode(errors="replace"), [package])


def _drawn(member: Member) -> list[tuple[str, Image.Image]] | None:
    """All surfaces of the thing in a file; None if there is no one thing."""
    name, data = member
    thing = cut_out(data or b"")
    return None if thing is None else list(surfaces(thing, openclipart.stem(name)))


def cut_out(data: bytes) -> Image.Image | None:
    """The thing that a PNG shows, RGBA, cropped to its outline and opaque within it; None if there is no one thing."""
    try:
        image = transparent(data)
    except ValueError:
        return None
    image.thumbnail((WORKING, WORKING), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    inside = pixels[..., 3] > 127
    if inside.all():
        edge = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))[:, :3]
        inside = np.abs(pixels[..., :3].astype(int) - np.median(edge, axis=0)).max(axis=2) > DIFFERENT
    inside = ndimage.binary_fill_holes(inside)
    pieces, count = ndimage.label(inside, np.ones((3, 3)))
    if not count:
        return None
    sizes = np.bincount(pieces.ravel())[1:]
    if sizes.max() < ALONE * sizes.sum():
        return None
    inside = pieces == sizes.argmax() + 1
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    if min(len(rows), len(columns)) < SIDE / 8 or not COVER[0] <= inside[box].mean() <= COVER[1]:
        return None
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    thing = np.dstack((np.asarray(white)[..., :3], np.uint8(255) * inside))
    return Image.fromarray(thing[box])


def surfaces(thing: Image.Image, stem: str) -> Iterator[tuple[str, Image.Image]]:
    """A thing with all its surfaces, each posed by itself, RGB 64 x 64 on black; random from the name alone."""
    random = np.random.default_rng(list(hashlib.sha256(stem.encode()).digest()))
    pixels = np.asarray(thing).astype(np.float64)
    own, inside = pixels[..., :3], pixels[..., 3:]
    for surface in SURFACES:
        if surface == "own colours":
            drawn = own
        elif surface == "negative":
            drawn = 255 - own
        else:
            drawn = _fabric(own.mean(axis=2), random)
        yield surface, _posed(Image.fromarray(np.dstack((drawn, inside)).round().astype(np.uint8)), random)


def _fabric(grey: Plane, random: np.random.Generator) -> Plane:
    """A colour with a soft gradient, at times striped, checked or rough, over a weak trace of the drawing itself."""
    height, width = grey.shape
    y, x = np.mgrid[:height, :width] / max(height, width)
    colour = random.uniform(40, 250) * random.uniform(0.8, 1.2, 3)
    angle = random.uniform(0, 2 * np.pi)
    light = 1 + random.uniform(0, 0.3) * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))
    period, depth = random.uniform(0.06, 0.3), random.uniform(0.05, 0.45)
    stripes = {"horizontal": y, "vertical": x, "slanted": x + y}
    kind = random.choice(["plain"] * 4 + ["rough", "checked", *stripes])
    if kind in stripes:
        light = light * np.where(np.mod(stripes[kind] / period, 1) < 0.5, 1, 1 - depth)
    elif kind == "checked":
        light = light * np.where((np.mod(x / period, 1) < 0.5) ^ (np.mod(y / period, 1) < 0.5), 1, 1 - depth)
    elif kind == "rough":
        noise = ndimage.gaussian_filter(random.normal(size=grey.shape), random.uniform(0.5, 3))
        light = light * (1 + depth * noise / (3 * noise.std() + 1e-9))
    light = light * (1 + random.uniform(0, 0.5) * (grey / 255 - grey.mean() / 255))
    shaded: Plane = np.clip(light[..., None] * colour, 0, 255)
    return shaded


def _posed(thing: Image.Image, random: np.random.Generator) -> Image.Image:
    """On black, `SIDE` x `SIDE`: stretched, turned a little, at times mirrored, about as large as its frame."""
    stretch = STRETCH ** random.uniform(-1, 1)
    width, height = max(1, round(thing.width * stretch)), thing.height
    turned = thing.resize((width, height)).rotate(
        random.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True, fillcolor=(0, 0, 0, 0)
    )
    turned = turned.crop(turned.getbbox(alpha_only=True))
    if random.random() < 0.5:
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = SIDE * random.uniform(SMALLEST, 1) / max(turned.size)
    size = tuple(max(1, round(scale * length)) for length in turned.size)
    small = turned.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", (SIDE, SIDE), "black")
    ground.alpha_composite(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return ground.convert("RGB")


COLLECTION = Collection(
    "cutouts",
    "things of Open Clip Art alone on black in five surfaces each, 64 x 64",
    openclipart.LICENCE,
    18_435,
    130_910_028,
    write,
)
