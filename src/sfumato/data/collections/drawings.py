"""A stand-in for a private collection of drawings: emoji of OpenMoji and stamps of Tux Paint, each in many poses.

Six subjects in unequal shares, which whoever tries a method may pretend not to know. Neither source taught Sfumato's
own image generator anything.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.collections import emoji, tuxpaint
from sfumato.data.collections._folder import Collection, Package, PictureFolder

COUNT, SIDE, SEED = 20_000, 64, 20_261_122
SHARES = {
    "openmoji/animals-nature": 0.38,
    "openmoji/food-drink": 0.27,
    "openmoji/travel-places": 0.11,
    "tuxpaint-stamps/animals": 0.12,
    "tuxpaint-stamps/food": 0.07,
    "tuxpaint-stamps/vehicles": 0.05,
}
SMALLEST, TURN = 0.75, 12.0  # of the frame; degrees
SOURCES = {"openmoji": emoji.write_openmoji, "tuxpaint-stamps": tuxpaint.write}


def write(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes the set."""
    archives.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archives) as temporary:
        places = {name: Path(temporary) / name for name in SOURCES}
        for name, place in places.items():
            place.mkdir()
            SOURCES[name](place, archives, lambda _: None)
        _write_posed(places, PictureFolder(folder, progress), archives)


def _write_posed(places: dict[str, Path], pictures: PictureFolder, archives: Path) -> None:
    known: dict[str, list[tuple[Path, dict[str, str]]]] = {subject: [] for subject in SHARES}
    for name, place in places.items():
        for line in (place / "metadata.jsonl").read_text().splitlines():
            facts = json.loads(line)
            if (subject := f"{name}/{facts['label']}") in known:
                known[subject].append((place / facts["file_name"], facts))
    if empty := [subject for subject, some in known.items() if not some]:
        raise ValueError(f"without pictures of {empty[0]}")
    draw = np.random.default_rng(SEED)
    for number, subject in enumerate(draw.choice(list(SHARES), COUNT, p=list(SHARES.values()))):
        file, facts = known[subject][int(draw.integers(len(known[subject])))]
        source = f"{number:05} of {facts['source']}"
        pictures.add(
            posed(Image.open(file), draw), source, subject.replace("/", " "), facts["text"], licence=facts["licence"]
        )
    texts = "\n".join((place / "LICENSE").read_text() for place in places.values())
    pictures.finish("drawings", texts, [package for place in places.values() for package in _packages(place, archives)])


def posed(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """RGB, 64 x 64, white ground: turned by up to `TURN` degrees, shrunk, shifted, mirrored half the time."""
    largest = int(SIDE * draw.uniform(SMALLEST, 1))
    small = picture.convert("RGB")
    small.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    turned = small.rotate(draw.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    if draw.random() < 0.5:
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    room = [SIDE - length for length in turned.size]  # negative where the corners stick out
    across, down = (int(draw.integers(min(left, 0), max(left, 0) + 1)) for left in room)
    ground = Image.new("RGB", (SIDE, SIDE), "white")
    ground.paste(turned, (across, down))
    return ground


def _packages(place: Path, archives: Path) -> list[Package]:
    rows = json.loads((place / "SOURCE.json").read_text())["packages"]
    return [Package(**row, path=archives) for row in rows]


COLLECTION = Collection(
    "drawings",
    "emoji and stamps of six subjects in many poses, 64 x 64, to try methods on",
    "CC-BY-SA-4.0, GPL-2.0-or-later",
    COUNT,
    emoji.OPENMOJI.download + tuxpaint.COLLECTION.download,
    write,
)
