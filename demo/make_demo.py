"""The main job on real images: Fashion-MNIST as the private folder, 10,000 synthetic images as the release.

The network learns first from things cut out of clip art, those of them that the private images ask for. Run by
`make demo`. Leaves `demo/release/`, `demo/contact-sheet.png` and `demo/demo.json`. Fashion-MNIST is public, so the demo
keeps a ledger of its own and starts it anew each time; a real data set's ledger is never removed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from sfumato.data.datasets import fetch
from sfumato.data.release import contact_sheet
from sfumato.hardware import choose_hardware
from sfumato.measure.utility import evaluate, read_folder

DEMO = Path(__file__).parent
PUBLIC, SETTINGS = DEMO / "public", DEMO / "settings.yaml"
DATA, RELEASE, RUN, LEDGER = DEMO / "data", DEMO / "release", DEMO / "release.run", DEMO / "home"

QUICK = choose_hardware().precision == "bf16"  # without it, all training takes about twice as long
METHOD = {
    "semantic": {"clusters": 200},  # clip art is labelled by subject; pictures that look alike are asked for instead
    "pretraining": {"steps": 400 if QUICK else 250},
    "steps": 100 if QUICK else 60,  # of private training: fewer are needed after public lessons
    "warm_share": 0.05,
    "warm_attempts": 1,  # no spare: a demo that is killed can be begun anew
    "warm_steps": 100,
    "warm_rate": 1e-3,  # gentler than for a network that knows nothing yet
}


def main() -> None:
    """Fetches, synthesizes, measures, and draws."""
    begun = time.monotonic()
    fetch("fashion-mnist", DATA)
    print("Cutting things out of clip art (131 MB, the first time only) ...", flush=True)
    fetch("cutouts", PUBLIC)
    SETTINGS.write_text(json.dumps({"privimage": METHOD}))  # JSON is YAML
    for folder in (RELEASE, RUN, LEDGER):
        shutil.rmtree(folder, ignore_errors=True)
    LEDGER.mkdir(mode=0o700)
    command = [
        *(sys.executable, "-m", "sfumato", "synthesize", str(DATA / "train"), str(RELEASE)),
        *("--dataset", "fashion-mnist-demo", "--ledger", str(LEDGER / "ledger.jsonl")),
        *("--method", "privimage", "--epsilon", "10", "--delta", "1e-5", "--public-size", "60000"),
        *("--classes-are-public", "--count", "10000"),
        *("--public", str(PUBLIC), "--public-ground", "dark", "--config", str(SETTINGS)),
    ]
    subprocess.run(command, check=True)
    print("\nHow useful are the images? Classifiers trained on them alone, tested on the 10,000 real test images:")
    cnn, logistic = (evaluate(RELEASE, DATA / "test", classifier) for classifier in ("cnn", "logistic"))
    statement = json.loads((RELEASE / "privacy.json").read_text())
    facts = {
        "epsilon": statement["epsilon"],
        "delta": statement["delta"],
        "images": cnn.train_images,
        "accuracy": round(100 * cnn.accuracy, 2),
        "logistic": round(100 * logistic.accuracy, 2),
        "seconds": round(time.monotonic() - begun, 1),
        "unit": statement["unit"],
    }
    pixels, labels, classes = read_folder(RELEASE)
    contact_sheet(pixels, labels, rows=10, columns=16, scale=2, classes=classes).save(DEMO / "contact-sheet.png")
    (DEMO / "demo.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(
        f"  CNN {facts['accuracy']} %, logistic regression {facts['logistic']} %, after {facts['seconds']:.0f} seconds"
    )
    print(f"The release is in {RELEASE}; its contact sheet is {DEMO / 'contact-sheet.png'}.")


if __name__ == "__main__":
    main()
