"""A stand-in for a private collection of drawings: Twitter's emoji of some subjects, each in many poses.

Five subjects in unequal shares, which whoever tries a method may pretend not to know. Sfumato's own image generator
learned nothing from this family of emoji.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.collections import emoji
from sfumato.data.collections._folder import Collection, Package, PictureFolder

COUNT, SIDE, SEED = 20_000, 64, 20_261_122
SHARES = {"animals-nature": 0.4, "food-drink": 0.28, "travel-places": 0.16, "objects": 0.1, "activities": 0.06}
SMALLEST, TURN = 0.75, 12.0  # of the frame; degrees


def write(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes the set."""
    archives.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archives) as temporary:
        source = Path(temporary)
        emoji.write_twemoji(source, archives, lambda _: None)
        _write_posed(source, PictureFolder(folder, progress), archives)


def _write_posed(source: Path, pictures: PictureFolder, archives: Path) -> None:
    known: dict[str, list[tuple[Image.Image, dict[str, str]]]] = {subject: [] for subject in SHARES}
    for line in (source / "metadata.jsonl").read_text().splitlines():
        facts = json.loads(line)
        if facts["label"] in known:
            known[facts["label"]].append((Image.open(source / facts["file_name"]).convert("RGB"), facts))
    if empty := [subject for subject, some in known.items() if not some]:
        raise ValueError(f"without pictures of {empty[0]}")
    draw = np.random.default_rng(SEED)
    for number, subject in enumerate(draw.choice(list(SHARES), COUNT, p=list(SHARES.values()))):
        picture, facts = known[subject][int(draw.integers(len(known[subject])))]
        of = f"{number:05} of {facts['source']}"
        pictures.add(posed(picture, draw), of, subject, facts["text"], licence=facts["licence"])
    origin = json.loads((source / "SOURCE.json").read_text())["packages"]
    packages = [Package(**row, path=archives) for row in origin]
    pictures.finish("drawings", (source / "LICENSE").read_text(), packages)


def posed(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """An RGB picture on white, 64 x 64: turned by up to `TURN` degrees, shrunk, shifted, mirrored half the time."""
    largest = int(SIDE * draw.uniform(SMALLEST, 1))
    small = picture.copy()
    small.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    turned = small.rotate(draw.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    if draw.random() < 0.5:
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    room = [SIDE - length for length in turned.size]  # negative where the corners stick out
    across, down = (int(draw.integers(min(left, 0), max(left, 0) + 1)) for left in room)
    ground = Image.new("RGB", (SIDE, SIDE), "white")
    ground.paste(turned, (across, down))
    return ground


COLLECTION = Collection(
    "drawings",
    "emoji of five subjects in many poses, 64 x 64, to try methods on",
    emoji.TWEMOJI.licence,
    COUNT,
    emoji.TWEMOJI.download,
    write,
)
