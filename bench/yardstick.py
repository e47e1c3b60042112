"""What the classifiers of `sfumato.measure.utility` reach on real Fashion-MNIST, 60,000 images to learn from.

    python bench/yardstick.py --data demo/data

Last line: {"logistic": .., "mlp": .., "cnn": .., "wrn": ..}, the share of test images classified correctly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cells import run

from sfumato.data.datasets import fetch
from sfumato.measure.recipes import CLASSIFIERS
from sfumato.measure.utility import evaluate


def measure(data: Path, classifier: str) -> dict[str, Any]:
    """Trains on `train/`, tests on `test/`."""
    fetch("fashion-mnist", data)
    found = evaluate(data / "train", data / "test", classifier)  # type: ignore[arg-type]
    return {
        "accuracy": found.accuracy,
        "per_class": found.per_class,
        "train_images": found.train_images,
        "test_images": found.test_images,
        "training_seconds": round(found.seconds, 1),
    }


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """One a classifier."""
    return {name: partial(measure, options.data, name) for name in CLASSIFIERS}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("demo/data"), help="where Fashion-MNIST is or goes")
    run(
        "yardstick",
        cells,
        lambda found: {name: round(cell["accuracy"], 4) for name, cell in found.items()},
        settings={"data": "fashion-mnist", "seed": 0},
        parser=options,
    )
