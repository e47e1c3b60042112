"""Portraits: a private folder of faces of one make-up, public faces of every make-up, and Spectral between them.

Run by `make demo-portraits`. All faces are of nobody: a small generator draws them. Private are those that lie on one
side of 48 random directions of its latent space, public are others from all of it. Spectral learns from the public
faces, from thumbnails of 16 x 16 pixels of the private ones with DP-SGD, and puts faces together from pieces of public
ones. Leaves `demo/portraits/release/`, `demo/portraits/faces.png` (public, private, released) and
`demo/portraits/enlarged.png`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.decode import ImageSpec
from sfumato.data.release import contact_sheet
from sfumato.hardware import choose_hardware
from sfumato.measure.features import features, load_embedder
from sfumato.measure.images import read_images
from sfumato.pretrained import zoo
from sfumato.pretrained.portraits import SIDE, on_one_side

DEMO = Path(__file__).parent / "portraits"
PRIVATE, PUBLIC, RELEASE, RUN, HOME = (DEMO / name for name in ("private", "public", "release", "release.run", "home"))
SIZES = {PRIVATE: 8_000, PUBLIC: 8_000}
DIRECTIONS, SEED, IMAGES = 48, 20_261_129, 1_000
UPSCALER, EMBEDDER = "realesrgan-animevideo-x4", "efficientnet-lite0"
ROWS, COLUMNS, ENLARGED = 4, 12, 12
LESSONS = 1200 if choose_hardware("cpu").precision == "bf16" else 400  # what 15 minutes hold
METHOD = {
    "width": 128,
    "heads": 4,
    "pretraining": {"steps": LESSONS, "rate": 2e-3},
    "warm_steps": 80,
    "batch": 400,
    "steps": 40,
}


def draw_faces() -> None:
    """Fills both folders, the first time."""
    if (DEMO / "DRAWN").exists():
        return
    shutil.rmtree(DEMO, ignore_errors=True)
    generator: Any = zoo.load_image_source("portraits")
    latents = {folder: generator.latents(count, SEED + number) for number, (folder, count) in enumerate(SIZES.items())}
    latents[PRIVATE] = on_one_side(latents[PRIVATE], DIRECTIONS, SEED)
    for folder, chosen in latents.items():
        folder.mkdir(parents=True)
        for number, face in enumerate(generator.draw_from(chosen)):
            Image.fromarray(face.transpose(1, 2, 0)).save(folder / f"{number:04}.png")
    (DEMO / "DRAWN").touch()


def read(folder: Path, count: int) -> NDArray[np.uint8]:
    """Some images of a folder, always the same, `(count, 3, H, W)`."""
    return np.stack(list(read_images(folder, ImageSpec(SIDE, SIDE, 3), count)))


def most_typical(known: NDArray[np.uint8], images: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Those images that are nearest to the mean of known ones, as a public embedder sees them."""
    embedder = load_embedder(EMBEDDER)
    seen, true = (features(some, embedder) for some in (images, known))
    return images[np.argsort(((seen - true.mean(0)) ** 2).sum(1))[:count]]


def main() -> None:
    """Draws, synthesizes, enlarges, shows."""
    begun = time.monotonic()
    zoo.pull(["portraits", UPSCALER, EMBEDDER])
    print("Drawing faces of nobody, the first time only ...", flush=True)
    draw_faces()
    for folder in (RELEASE, RUN, HOME):
        shutil.rmtree(folder, ignore_errors=True)
    HOME.mkdir(mode=0o700)
    (DEMO / "run.yaml").write_text(yaml.safe_dump({"spectral": METHOD}))
    command = [
        *(sys.executable, "-m", "sfumato", "synthesize", str(PRIVATE), str(RELEASE), "--method", "spectral"),
        *("--dataset", "portraits-demo", "--ledger", str(HOME / "ledger.jsonl"), "--config", str(DEMO / "run.yaml")),
        *("--epsilon", "10", "--delta", "1e-5", "--public-size", str(SIZES[PRIVATE]), "--count", str(IMAGES)),
        *("--size", f"{SIDE}x{SIDE}", "--channels", "3", "--public", str(PUBLIC)),
    ]
    subprocess.run(command, check=True)
    made, shown = read(RELEASE, IMAGES), ROWS * COLUMNS
    rows = np.concatenate((read(PUBLIC, shown), read(PRIVATE, shown), made[:shown]))
    contact_sheet(rows, rows=3 * ROWS, columns=COLUMNS, scale=1).save(DEMO / "faces.png")
    print(f"\nEnlarging the {ENLARGED} that are most like a public face ...", flush=True)
    best = zoo.load_upscaler(UPSCALER).upscale(most_typical(read(PUBLIC, IMAGES), made, ENLARGED))
    contact_sheet(best, rows=2, columns=ENLARGED // 2, scale=1).save(DEMO / "enlarged.png")
    statement = json.loads((RELEASE / "privacy.json").read_text())
    print(f"epsilon {statement['epsilon']:g}, delta {statement['delta']:g}, {time.monotonic() - begun:.0f} seconds")
    print(f"The release is in {RELEASE}; {DEMO / 'faces.png'} shows public, private and released faces, one below the")
    print(f"other, and {DEMO / 'enlarged.png'} some of them at 256 x 256 pixels.")


if __name__ == "__main__":
    main()
