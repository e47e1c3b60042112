"""Where PrivImage's settings for Fashion-MNIST come from: a public stand-in, so that nothing is tuned on its test set.

    python bench/standin.py [--only "epsilon 1 share 0.2"]

The stand-in has ten classes that are hard to tell apart, as clothes are: letters (C G O Q D, B E F P R) in the fonts of
`sfumato data fetch glyphs`, posed by chance, plain, striped or rough. 60,000 private records; the 10,000 test images
are in other fonts. The public images are cut-out clip art and shapes. Each cell is a run with another share of the
budget for the warm start; its model then draws 10,000 images by each of the ways in `WAYS`, all but one of them with
the label check.

Last line: {"epsilon 1 share 0.2": {"unchecked": .., "checked": .., "stirred": .., ..}, ..}, accuracies of a CNN that is
trained on those images and tested on the stand-in's test images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from cells import run
from fashion_mnist import SCRATCH
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from sfumato.data.datasets import fetch
from sfumato.hardware import choose_hardware
from sfumato.measure.images import Labelled
from sfumato.measure.recipes import train
from sfumato.measure.utility import read_folder
from sfumato.methods.privimage_model import PrivImageModel
from sfumato.run import Run

LETTERS = "bcdefgopqr"
PER_CLASS = {"train": 6000, "test": 1000}
HELD_OUT = 5  # one font in so many
SHARES = {1.0: (0.04, 0.2, 0.4), 10.0: (0.04, 0.2)}
IMAGES = 10_000
METHOD = {
    "batch": 1536,
    "steps": 160,
    "draws": 2,
    "width": [32, 32],
    "warm_attempts": 1,
    "warm_steps": 100,
    "warm_rate": 1e-3,
    "pretraining": {"steps": 800},
    "semantic": {"clusters": 200},
}
STIR = {"churn": 6.0, "churn_from": 0.05, "churn_to": 10.0}
WAYS: dict[str, dict[str, Any]] = {
    "unchecked": {"check": False},
    "checked": {},
    "stirred": {"sampler": STIR},
    "half mixed": {"mixed": 0.5},
}


def make_set() -> Path:
    """Draws the stand-in, the first time; returns its folder."""
    folder = SCRATCH / "data" / "standin"
    if (folder / "DONE").exists():
        return folder
    for name in ("glyphs", "cutouts", "shapes"):
        fetch(name, SCRATCH / "data" / name)
    random = np.random.default_rng(0)
    fonts = _fonts(SCRATCH / "data" / "glyphs")
    shutil.rmtree(folder, ignore_errors=True)
    for split, count in PER_CLASS.items():
        chosen = [
            fonts[name] for place, name in enumerate(sorted(fonts)) if (place % HELD_OUT == 0) == (split == "test")
        ]
        for letter in LETTERS:
            (folder / split / letter).mkdir(parents=True)
            glyphs = [glyph for font in chosen for glyph in font.get(letter, ())]
            for number in range(count):
                pixels = posed(glyphs[random.integers(len(glyphs))], random)
                Image.fromarray(pixels).save(folder / split / letter / f"{number:05}.png", compress_level=1)
    (folder / "DONE").touch()
    return folder


def _fonts(glyphs: Path) -> dict[str, dict[str, list[NDArray[np.float32]]]]:
    """Capital letters by font and letter, 0 to 1."""
    found: dict[str, dict[str, list[NDArray[np.float32]]]] = {}
    for line in (glyphs / "metadata.jsonl").read_text().splitlines():
        facts = json.loads(line)
        folder = facts["file_name"].split("/")[0]
        letter = folder.removeprefix("upper-")
        if folder.startswith("upper-") and letter in LETTERS:
            pixels = np.asarray(Image.open(glyphs / facts["file_name"]).convert("L"), dtype=np.float32) / 255
            pixels = 1 - pixels if pixels[0, 0] > 0.5 else pixels
            font = facts["text"].rpartition("font ")[2]
            found.setdefault(font, {}).setdefault(letter, []).append(pixels)
    return found


def posed(glyph: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.uint8]:
    """A letter turned, stretched, slanted and moved a little, with a surface."""
    angle, slant = np.radians(random.normal(0, 6)), random.normal(0, 0.12)
    tall, wide = random.uniform(0.9, 1.3, 2)
    matrix = np.array([[np.cos(angle) * tall, -np.sin(angle)], [np.sin(angle) + slant, np.cos(angle) * wide]])
    centre = np.array(glyph.shape) / 2 - 0.5
    shape = ndimage.affine_transform(glyph, matrix, centre - matrix @ (centre + random.normal(0, 0.7, 2)), order=1)
    light = random.uniform(0.35, 1) + 0.12 * ndimage.zoom(random.normal(size=(4, 4)), 7, order=1)
    row, column = np.mgrid[: glyph.shape[0], : glyph.shape[1]]
    surface = random.choice(["plain", "rows", "columns", "rough"], p=[0.5, 0.2, 0.15, 0.15])
    if surface in ("rows", "columns"):
        light = light * (1 - 0.4 * ((row if surface == "rows" else column) // 2 % 2))
    elif surface == "rough":
        light = light + random.normal(0, 0.15, glyph.shape)
    pixels: NDArray[np.uint8] = (255 * np.clip(shape * np.clip(light, 0.1, 1), 0, 1)).astype(np.uint8)
    return pixels


def measure(epsilon: float, share: float) -> dict[str, float]:
    """One run from nothing; accuracies by the way of drawing."""
    data = make_set()
    folder = SCRATCH / f"standin-{epsilon:g}-{share:g}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump({"privimage": METHOD | {"warm_share": share}}))
    command = [
        *(sys.executable, "-m", "sfumato", "synthesize", str(data / "train"), str(folder / "release")),
        *("--dataset", "standin", "--ledger", str(folder / "ledger.jsonl"), "--epsilon", f"{epsilon:g}"),
        *("--delta", "1e-5", "--public-size", "60000", "--classes-are-public", "--count", "1000"),
        *(word for name in ("cutouts", "shapes") for word in ("--public", str(SCRATCH / "data" / name))),
        *("--public-ground", "dark", "--config", str(folder / "run.yaml")),
    ]
    subprocess.run(command, check=True)
    run_folder = folder / "release.run"
    config = Run(run_folder).config
    shape = config.privimage.shape(config.image.spec().shape, len(LETTERS))
    model = PrivImageModel.load(run_folder, False, shape)
    labels = torch.arange(IMAGES) % len(LETTERS)
    test = read_folder(data / "test")
    found = {}
    for name, changes in WAYS.items():
        way = dataclasses.replace(
            model,
            sampler=model.sampler._replace(**changes.get("sampler", {})),
            mixed=changes.get("mixed", 0.0),
            check=model.check if changes.get("check", True) else None,
        )
        pixels = torch.cat(list(way.sample(labels, 0, choose_hardware()))).numpy()
        predict = train("cnn", Labelled(pixels, labels.numpy(), test.classes), "auto", lambda *_: None)
        found[name] = round(float((predict(test.pixels) == test.labels).mean()), 4)
    return found


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """A run each."""
    return {
        f"epsilon {epsilon:g} share {share:g}": partial(measure, epsilon, share)
        for epsilon, shares in SHARES.items()
        for share in shares
    }


if __name__ == "__main__":
    run("standin", cells, dict, settings={"method": METHOD, "ways": WAYS, "images": IMAGES})
