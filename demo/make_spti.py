"""Captions that evolve by private votes: 8,000 private drawings, epsilon 1, nothing trained, no network.

Run by `make demo-spti`. The private folder holds emoji and stamps of a few subjects in unequal shares, which neither
the image generator nor the list of captions knows. Leaves `demo/spti/release/` and `demo/spti/before-and-after.png`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from sfumato.data.datasets import fetch
from sfumato.pretrained import zoo
from sfumato.report.sheet import contact_sheet

DEMO = Path(__file__).parent / "spti"
DATA, PRIVATE, RELEASE, RUN, HOME = (DEMO / name for name in ("data", "private", "release", "release.run", "home"))
COUNT, ROWS, COLUMNS = 8_000, 6, 12
MODELS = ("clipart", "captions", "minilm", "efficientnet-lite0")
SETTINGS = {
    "rounds": 5,
    "population": 300,
    "first_variations": 3,
    "variations": 3,
    "options": {"images": {"fast": True}},
}


def private_folder() -> int:
    """Links the first drawings of the set, in an order that has nothing to do with their subjects."""
    fetch("drawings", DATA)
    shutil.rmtree(PRIVATE, ignore_errors=True)
    PRIVATE.mkdir(parents=True)
    files = sorted(DATA.glob("*/*.png"))
    for number in np.random.default_rng(0).permutation(len(files))[:COUNT]:
        os.link(files[number], PRIVATE / files[number].name)
    return COUNT


def first_images(folder: Path) -> np.ndarray[Any, Any]:
    """The first images of a release, or the first that were drawn in a run, `(N, 3, H, W)`."""
    files = sorted((folder / "images").rglob("*.png"))[: ROWS * COLUMNS]
    return np.stack([np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files])


def main() -> None:
    """Fetches, synthesizes, and shows how the captions changed."""
    begun = time.monotonic()
    zoo.pull(list(MODELS))
    size = private_folder()
    for folder in (RELEASE, RUN, HOME):
        shutil.rmtree(folder, ignore_errors=True)
    HOME.mkdir(mode=0o700)
    (DEMO / "run.yaml").write_text(yaml.safe_dump({"spti": SETTINGS}))
    command = [
        *(sys.executable, "-m", "sfumato", "synthesize", str(PRIVATE), str(RELEASE), "--method", "spti"),
        *("--dataset", "drawings-demo", "--ledger", str(HOME / "ledger.jsonl"), "--config", str(DEMO / "run.yaml")),
        *("--epsilon", "1", "--delta", "1e-5", "--public-size", str(size), "--count", "300"),
    ]
    subprocess.run(command, check=True)
    with np.load(RUN / "candidates" / "000-000000.npz") as drawn:
        before = drawn["images"][: ROWS * COLUMNS // 2]
    after = first_images(RELEASE)[: ROWS * COLUMNS // 2]
    sheet = contact_sheet(np.concatenate((before, after)), rows=ROWS, columns=COLUMNS, scale=1)
    sheet.save(DEMO / "before-and-after.png")
    statement = json.loads((RELEASE / "privacy.json").read_text())
    print("\nWhat the private drawings voted for, round by round (noisy votes in all, best captions):")
    for number, one in enumerate(statement["released"]["rounds"], 1):
        print(
            f"  {number}. {one['noisy_votes']:,} votes on {one['candidates']:,} drawings: {', '.join(one['best'][:6])}"
        )
    print(f"\nepsilon {statement['epsilon']:g}, delta {statement['delta']:g}, {time.monotonic() - begun:.0f} seconds")
    print(
        f"The release is in {RELEASE}; {DEMO / 'before-and-after.png'} shows random drawings above, the release below."
    )


if __name__ == "__main__":
    main()
