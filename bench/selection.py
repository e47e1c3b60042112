"""PrivImage's claim at equal compute and budget: it helps to ask the private images which public ones to learn from.

    python bench/selection.py [--runs 3] [--only "semantic 1 1"]

Four arms on Fashion-MNIST (60,000 records, delta 1e-5), each at epsilon 10 and 1, all with the same public images (clip
art cut out, glyphs, shapes) and as many forward and backward rows: the network is pretrained on the images that the
*semantic* query chose, on as many at *random*, on *all* of them, or on *none*, which trains as many more rows in
private. What the query costs is in its arm's budget; the others spend it on training. Each run makes 5,000 images.

Last line: {"10": {"semantic": [..], "random": [..], "all": [..], "none": [..]}, "1": {..}, "cnn": {"10": {..}, ..}}.
The lists hold a Frechet distance a run, between the 5,000 synthetic and 5,000 real test images in the features of
`efficientnet-lite0`; under `cnn`, accuracies of a CNN trained on the synthetic images and tested on the real ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import yaml
from cells import run
from fashion_mnist import MEASURED_BY, PUBLIC, SCRATCH, SETTINGS, fetch_all, real_features

from sfumato.measure.features import load_embedder
from sfumato.measure.frechet import frechet_distance
from sfumato.measure.utility import evaluate, read_folder

ARMS = ("semantic", "random", "all", "none")
EPSILONS = (10.0, 1.0)
IMAGES = 5_000
LESSONS = {"steps": 500, "batch": 256}
BATCH = {10.0: 2048, 1.0: 1024}
STEPS = 100


def settings(arm: str, epsilon: float, number: int) -> dict[str, Any]:
    """The run file of one arm; the same rows for all."""
    steps = STEPS
    if arm == "none":
        steps += round(LESSONS["steps"] * LESSONS["batch"] / BATCH[epsilon])
    method: dict[str, Any] = {"batch": BATCH[epsilon], "steps": steps, "draws": 1, "width": [32, 32]}
    method |= {name: SETTINGS[name] for name in ("warm_steps", "warm_rate")}
    method["check"] = {"share": 0.0}  # compared is what the networks drew, under the names they drew it for
    if arm != "none":
        method |= {"selection": arm, "pretraining": LESSONS, "semantic": SETTINGS["semantic"] | {"kept": 0.3}}
    return {
        "dataset": "fashion-mnist-selection",
        "epsilon": epsilon,
        "delta": 1e-5,
        "public_size": 60_000,
        "count": IMAGES,
        "seed": number,
        "privimage": method,
    }


def measure(options: argparse.Namespace, arm: str, epsilon: float, number: int) -> dict[str, Any]:
    """One run from nothing, and what its release is worth."""
    data = fetch_all(argparse.Namespace(public=True))
    real, embedder = real_features(data, IMAGES), load_embedder(MEASURED_BY)  # before the run: the model may be missing
    folder = SCRATCH / f"selection-{arm}-{epsilon:g}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(settings(arm, epsilon, number)))
    public = () if arm == "none" else PUBLIC
    began = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, "-m", "sfumato", "synthesize", str(data / "train"), str(folder / "release")),
            *("--config", str(folder / "run.yaml"), "--ledger", str(folder / "ledger.jsonl"), "--classes-are-public"),
            *(word for name in public for word in ("--public", str(SCRATCH / "data" / name))),
            *(("--public-ground", "dark") if public else ()),
        ],
        check=True,
    )
    seconds = time.monotonic() - began
    release = folder / "release"
    return {
        "frechet": frechet_distance(real, embedder.embed_images(read_folder(release)[0])).distance,
        "cnn": evaluate(release, data / "test", "cnn").accuracy,
        "epsilon": json.loads((release / "privacy.json").read_text())["epsilon"],
        "seconds": round(seconds, 1),
    }


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """One a run; all arms of a run come before the next run, so that an unfinished table compares like with like."""
    return {
        f"{arm} {epsilon:g} {number}": partial(measure, options, arm, epsilon, number)
        for number in range(1, options.runs + 1)
        for epsilon in EPSILONS
        for arm in ARMS
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Distances and accuracies by epsilon and arm, in the order of the runs."""
    distances: dict[str, Any] = {f"{epsilon:g}": {arm: [] for arm in ARMS} for epsilon in EPSILONS}
    accuracies: dict[str, Any] = {f"{epsilon:g}": {arm: [] for arm in ARMS} for epsilon in EPSILONS}
    for name, cell in found.items():
        arm, epsilon, _ = name.split()
        distances[epsilon][arm].append(round(cell["frechet"], 3))
        accuracies[epsilon][arm].append(round(cell["cnn"], 4))
    return distances | {"cnn": accuracies}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each arm and epsilon")
    run("selection", cells, summary, settings={"lessons": LESSONS, "steps": STEPS, "images": IMAGES}, parser=parser)
