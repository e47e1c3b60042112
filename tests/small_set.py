"""A small labelled image folder drawn by code, and settings that make a whole run take seconds."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato import run
from sfumato.config import RunConfig
from sfumato.privacy.plan import Plan

CLASSES = ("bars", "disc", "ring")
SMALL: dict[str, Any] = {
    "width": [8, 8],
    "blocks": [2, 1],
    "batch": 40,
    "steps": 5,
    "warm_steps": 2,
    "sampler": {"steps": 3},
    "chunk": 16,
}


def draw_folder(root: Path, count: int = 90, size: int = 16) -> Path:
    """Writes `count` grey pictures in three class folders."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1) * 2 - 1
    random = np.random.default_rng(7)
    for number in range(count):
        a, b = random.uniform(-0.3, 0.3, 2)
        radius = np.hypot(x - a, y - b)
        picture = {
            "bars": np.sin(6 * (x + a)) > b,
            "disc": radius < 0.6 + a / 2,
            "ring": np.abs(radius - 0.6) < 0.2,
        }[CLASSES[number % 3]]
        folder = root / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture * 220 + 15).astype(np.uint8)).save(folder / f"{number:04d}.png")
    return root


@functools.cache
def plan_of(config: RunConfig) -> Plan:
    """The plan of a configuration, calibrated once for all tests that use it."""
    return run.make_plan(config)


def settings(**changes: Any) -> dict[str, Any]:
    """Settings of a small run."""
    return {
        "dataset": "small",
        "epsilon": 8.0,
        "delta": 1e-5,
        "public_size": 90,
        "classes": list(CLASSES),
        "classes_origin": "listed",
        "count": 12,
        "image": {"height": 16, "width": 16},
        "privimage": SMALL,
    } | changes
