"""Captions that evolve by private votes: 8,000 private drawings, epsilon 1, nothing trained, no model asked elsewhere.

Run by `make demo-spti`. The private folder holds emoji of five subjects in unequal shares, which neither the image
generator nor the list of captions knows. Leaves `demo/spti/release/` and `demo/spti/before-and-after.png`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.datasets import fetch
from sfumato.data.release import contact_sheet
from sfumato.pretrained import zoo

DEMO = Path(__file__).parent / "spti"
DATA, PRIVATE, RELEASE, RUN, HOME = (DEMO / name for name in ("data", "private", "release", "release.run", "home"))
COUNT, IMAGES = 8_000, 300
ROWS, COLUMNS = 5, 12  # of each half of the sheet
MODELS = ("captions", "minilm", "efficientnet-lite0")  # `clipart` comes with Sfumato
SETTINGS = {"rounds": 4, "population": IMAGES, "first_variations": 3, "variations": 3}


def choose_private() -> None:
    """Links some of the drawings, in an order that has nothing to do with their subjects."""
    fetch("drawings", DATA)
    shutil.rmtree(PRIVATE, ignore_errors=True)
    PRIVATE.mkdir()
    files = sorted(DATA.glob("*/*.png"))
    for number in np.random.default_rng(0).permutation(len(files))[:COUNT]:
        os.link(files[number], PRIVATE / files[number].name)


def before_and_after() -> NDArray[np.uint8]:
    """Drawings of the first random captions, and those that the release begins with, `(N, 3, H, W)`."""
    count = ROWS * COLUMNS
    parts = [np.load(file)["images"] for file in sorted((RUN / "candidates").glob("000-*.npz"))]
    files = sorted((RELEASE / "images").rglob("*.png"))[:count]
    after = np.stack([np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files])
    return np.concatenate((np.concatenate(parts)[:count], after))


def main() -> None:
    """Fetches, synthesizes, and shows how the captions changed."""
    begun = time.monotonic()
    zoo.pull(list(MODELS))
    choose_private()
    for folder in (RELEASE, RUN, HOME):
        shutil.rmtree(folder, ignore_errors=True)
    HOME.mkdir(mode=0o700)
    (DEMO / "run.yaml").write_text(yaml.safe_dump({"spti": SETTINGS}))
    command = [
        *(sys.executable, "-m", "sfumato", "synthesize", str(PRIVATE), str(RELEASE), "--method", "spti"),
        *("--dataset", "drawings-demo", "--ledger", str(HOME / "ledger.jsonl"), "--config", str(DEMO / "run.yaml")),
        *("--epsilon", "1", "--delta", "1e-5", "--public-size", str(COUNT), "--count", str(IMAGES)),
    ]
    subprocess.run(command, check=True)
    contact_sheet(before_and_after(), rows=2 * ROWS, columns=COLUMNS, scale=1).save(DEMO / "before-and-after.png")
    statement = json.loads((RELEASE / "privacy.json").read_text())
    print("\nWhat the private drawings voted for, round by round:")
    for number, one in enumerate(statement["released"]["rounds"], 1):
        best = ", ".join(one["best"][:6])
        print(f"  {number}. {one['noisy_votes']:,} votes for {one['candidates']:,} drawings: {best}")
    print(f"\nepsilon {statement['epsilon']:g}, delta {statement['delta']:g}, {time.monotonic() - begun:.0f} seconds")
    print(f"The release is in {RELEASE}.")
    print(f"{DEMO / 'before-and-after.png'} shows drawings of random captions above, the release below.")


if __name__ == "__main__":
    main()
