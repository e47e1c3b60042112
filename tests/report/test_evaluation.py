from __future__ import annotations

import copy
from typing import Any

from sfumato.report.evaluation import NOTICE, summarise


def side(shift: float) -> dict[str, Any]:
    counts = {"real": 321, "generated": 321}
    return {
        "frechet": {"distance": 10 + shift, **counts},
        "kernel": {"mean": 0.125 + shift, "deviation": 0.5, "subsets": 100, "subset_size": 160, **counts},
        "precision_recall": {"precision": 0.25, "recall": 0.5, "neighbours": 3, **counts},
        "density_coverage": {"density": 0.75, "coverage": 0.875, "neighbours": 5, **counts},
        "nearest": near(shift),
    }


def near(shift: float) -> dict[str, Any]:
    return {"smallest": 1 + shift, "lowest_1": 2, "lowest_5": 3, "median": 4 + shift, "copies": 0}


def one(classifier: str, accuracy: float, train: int) -> dict[str, Any]:
    return {
        "classifier": classifier,
        "accuracy": accuracy,
        "per_class": {"<b>bag</b>": accuracy},
        "train_images": train,
        "test_images": 777,
        "seconds": 1.0,
    }


def facts() -> dict[str, Any]:
    return {
        "notice": NOTICE,
        "release_id": "5eed",
        "epsilon": 1.5,
        "delta": 1e-6,
        "dataset": "lines",
        "software": "sfumato 1",
        "seconds": 9.0,
        "distances": {
            "net": {
                "embedder": {"source": "a package"},
                "images": 321,
                "release": side(0.0),
                "reference": side(0.0625),
                "release_to_holdout": near(0.5),
                "lean": {"share": 0.555, "deviation": 0.05, "training": 321, "holdout": 321, "generated": 321},
                "expected": {"density": 1.0, "coverage": 0.9687, "lean": 0.5},
            }
        },
        "classifiers": {
            "synthetic": [one("cnn", 0.7123, 400), one("mlp", 0.6, 400)],
            "real": [one("cnn", 0.9, 401), one("mlp", 0.8, 401)],
            "mean": 0.6562,
            "maximum": 0.7123,
            "real_mean": 0.85,
            "real_maximum": 0.9,
        },
    }


def test_without_classifiers_it_says_why() -> None:
    given = copy.deepcopy(facts())
    given["classifiers"] = {"absent": "No labels here."}
    assert "No labels here." in summarise(given)


def test_the_summary_warns_first_and_tells_counts() -> None:
    lines = summarise(facts()).splitlines()
    assert lines[0] == NOTICE
    text = "\n".join(lines)
    for words in ("321 images", "400 synthetic, 401 private", "tested on 777"):
        assert words in text
    row = next(line for line in lines if "Frechet" in line)
    assert row.split()[-2:] == ["10", "10.06"]
    row = next(line for line in lines if line.strip().startswith("mean"))
    assert row.split()[-2:] == ["65.62%", "85.00%"]
