"""PrivImage or Spectral on Fashion-MNIST: 60,000 records, delta 1e-5, 60,000 synthetic images, four classifiers.

    python bench/fashion_mnist.py --epsilon 1 --minutes 40
    python bench/fashion_mnist.py --method spectral --epsilon 1 --minutes 30

Training goes on over as many cells as it needs; a cell that is cut off costs the run the step it was at, as any kill
does. Everything lies in `bench/scratch/`, apart from the results. The epsilon is that of the run's statement.

Last line: {"epsilon": .., "minutes": .., "logistic": .., "mlp": .., "cnn": .., "wrn": .., "mean": .., "max": ..,
"real": .., "frechet": ..}. Accuracies are of the real test images, from one run; `mean` and `max` are over the four
classifiers; `real` is the CNN's on real images (bench/yardstick.py); `frechet` is between 10,000 synthetic and the
10,000 test images in the features of `efficientnet-lite0`.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cells import RESULTS, run
from numpy.typing import NDArray

from sfumato.data.datasets import fetch
from sfumato.measure.features import load_embedder
from sfumato.measure.frechet import frechet_distance
from sfumato.measure.recipes import CLASSIFIERS
from sfumato.measure.utility import evaluate, read_folder

SCRATCH = Path(__file__).parent / "scratch"
PUBLIC = ("cutouts", "glyphs", "shapes")
SETTINGS: dict[str, Any] = {
    # Clip art is labelled by subject and not by looks, so pictures that look alike are the public classes.
    "semantic": {"clusters": 200},
    # Gentler than where the network begins untaught, so that it keeps what the public images taught it.
    "warm_steps": 100,
    "warm_rate": 1e-3,
    # A spare attempt would cost half of the budget of the class models; a kill in those seconds costs the run.
    "warm_attempts": 1,
}
BY_EPSILON: dict[float, dict[str, float]] = {
    # The less training can learn, the more the class models are worth: budget, and blurred samples for classifiers.
    10.0: {"warm_share": 0.08, "mixed": 0.3},
    1.0: {"warm_share": 0.2, "mixed": 0.5},
}
SPECTRAL: dict[str, Any] = {
    # Nothing of it was tried on Fashion-MNIST: 14 x 14 pixels as 49 tokens. The public images are no clothes, so their
    # pieces are of no use as detail; super-resolution would take half of the time for 60,000 images.
    **{"levels": 1, "patch": 2, "vocabulary": 256, "detail": "lanczos"},
    "warm_attempts": 1,
}
PART = 35 * 60  # seconds of training in one cell
FRECHET_IMAGES = 10_000
MEASURED_BY = "efficientnet-lite0"


def place(options: argparse.Namespace) -> Path:
    """Folder of one run; release, run folder and ledger lie in it."""
    kind = "spectral" if options.method == "spectral" else "public" if options.public else "alone"
    return SCRATCH / f"fashion-mnist-{options.epsilon:g}-{options.minutes:g}-{kind}-{options.number}"


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Of the method."""
    if options.method == "spectral":
        return SPECTRAL
    chosen = {name: value for name, value in SETTINGS.items() if options.public or name != "semantic"}
    return chosen | BY_EPSILON[min(BY_EPSILON, key=lambda known: abs(known - options.epsilon))]


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Starts the run or goes on with it, for at most `PART` seconds."""
    folder = place(options)
    release, run_folder = folder / "release", folder / "release.run"
    data = fetch_all(options)
    began = time.monotonic()
    if (run_folder / "run.json").exists():
        command = ["resume", str(run_folder)]
    else:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "settings.yaml"
        config.write_text(yaml.safe_dump({options.method: settings(options)}))
        command = [
            *("synthesize", str(data / "train"), str(release), "--dataset", "fashion-mnist-bench"),
            *("--ledger", str(folder / "ledger.jsonl"), "--method", options.method),
            *("--epsilon", f"{options.epsilon:g}", "--delta", "1e-5", "--public-size", "60000"),
            *("--classes-are-public", "--count", "60000", "--size", "28x28", "--channels", "1"),
            *("--minutes", f"{options.minutes:g}", "--public-ground", "dark"),
            *(word for name in PUBLIC if options.public for word in ("--public", str(SCRATCH / "data" / name))),
            *("--config", str(options.config or config)),
        ]
    process = subprocess.Popen([sys.executable, "-m", "sfumato", *command])
    try:
        process.wait(PART)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    if process.returncode not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
        sys.exit(f"sfumato {command[0]} failed with {process.returncode}")
    return {"seconds": round(time.monotonic() - began, 1), "finished": (run_folder / "DONE").exists()}


def fetch_all(options: argparse.Namespace) -> Path:
    """Brings what the run reads; returns the folder of Fashion-MNIST."""
    for name in PUBLIC if options.public else ():
        if not (SCRATCH / "data" / name / "SOURCE.json").exists():
            fetch(name, SCRATCH / "data" / name)
    fetch("fashion-mnist", SCRATCH / "data" / "fashion-mnist")
    return SCRATCH / "data" / "fashion-mnist"


def classify(options: argparse.Namespace, classifier: str) -> dict[str, Any]:
    """Trains on the release, tests on the real test images."""
    found = evaluate(released(options), fetch_all(options) / "test", classifier)  # type: ignore[arg-type]
    return {"accuracy": found.accuracy, "per_class": found.per_class, "training_seconds": round(found.seconds, 1)}


def distance(options: argparse.Namespace) -> dict[str, Any]:
    """Frechet distance of equal numbers of images, and the statement's epsilon."""
    release = released(options)
    statement = json.loads((release / "privacy.json").read_text())
    pixels = read_folder(release)[0]
    chosen = np.random.default_rng(0).permutation(len(pixels))[:FRECHET_IMAGES]
    features = load_embedder(MEASURED_BY).embed_images(pixels[chosen])
    real = real_features(fetch_all(options), FRECHET_IMAGES)
    return {"frechet": frechet_distance(real, features).distance, "epsilon": statement["epsilon"]}


def real_features(data: Path, count: int) -> NDArray[np.float32]:
    """Of so many test images by lot; kept for the cells that follow."""
    file = SCRATCH / f"fashion-mnist-test-{MEASURED_BY}-{count}.npy"
    if not file.exists():
        pixels = read_folder(data / "test")[0]
        chosen = np.random.default_rng(0).permutation(len(pixels))[:count]
        np.save(file, load_embedder(MEASURED_BY).embed_images(pixels[chosen]))
    found: NDArray[np.float32] = np.load(file)
    return found


def released(options: argparse.Namespace) -> Path:
    """The release, if the run is done."""
    release = place(options) / "release"
    if not (release / "DONE").exists():
        sys.exit("the run is not finished: measure its training cells first, more of them with --parts")
    return release


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """Parts of the training, one a classifier, the distance."""
    name = place(options).name
    parts = options.parts or math.ceil(1.15 * 60 * options.minutes / PART)
    table: dict[str, Callable[[], Any]] = {
        f"{name} train {part}": partial(train, options) for part in range(1, parts + 1)
    }
    table |= {f"{name} {classifier}": partial(classify, options, classifier) for classifier in CLASSIFIERS}
    return table | {f"{name} frechet": partial(distance, options)}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """One line from the cells of one run."""
    by_kind = {name.rpartition(" ")[2]: cell for name, cell in found.items()}
    accuracies: dict[str, Any] = {name: round(by_kind[name]["accuracy"], 4) for name in CLASSIFIERS if name in by_kind}
    seconds = sum(cell["seconds"] for name, cell in found.items() if " train " in name)
    real = RESULTS / "yardstick.json"
    line: dict[str, Any] = {"minutes": round(seconds / 60, 1), **accuracies}
    if accuracies:
        line |= {
            "mean": round(sum(accuracies.values()) / len(accuracies), 4),
            "max": max(accuracies.values()),
        }
    if real.exists():
        line["real"] = round(json.loads(real.read_text())["cnn"]["result"]["accuracy"], 4)
    if "frechet" in by_kind:
        line = {"epsilon": by_kind["frechet"]["epsilon"], **line, "frechet": round(by_kind["frechet"]["frechet"], 3)}
    return line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["privimage", "spectral"], default="privimage")
    parser.add_argument("--epsilon", type=float, default=10.0)
    parser.add_argument("--minutes", type=float, default=40.0, help="that the run plans for")
    parser.add_argument("--number", type=int, default=1, help="of the run, where there are several")
    parser.add_argument("--parts", type=int, help="cells of training (default: as many as the minutes need)")
    parser.add_argument("--no-public", dest="public", action="store_false", help="without public images")
    parser.add_argument("--config", type=Path, help="settings of the run in place of SETTINGS")
    run("fashion_mnist", cells, summary, settings={"data": "fashion-mnist", "delta": 1e-5}, parser=parser)
