"""Reading a folder: images a second, and whether memory grows with the number of images.

    python bench/intake.py

Last line: {"images_per_second": .., "peak_mb_10000": .., "peak_mb_100000": ..} for grey 28 x 28 PNG files on all cores;
peak memory is the reading process's own, beyond what it had before the first file, without the pages of the file that
holds the decoded pixels, which the system can drop at any time.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import run
from PIL import Image

from sfumato.data.decode import ImageSpec
from sfumato.data.folder import ImageFolder
from sfumato.privacy.records import PrivateRecords, record_key

COUNTS = (10_000, 100_000)


def draw(folder: Path, count: int) -> None:
    """`count` different pictures of noise in ten class folders."""
    random = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(file, "PNG")
        (folder / str(number % 10) / f"{number:06}.png").write_bytes(file.getvalue())


def own_memory() -> float:
    """Megabytes of this process that no file backs."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024


class Peak:
    """Watches this process's own memory, 20 times a second."""

    def __init__(self) -> None:
        self._most, self._done = own_memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self._most = max(self._most, own_memory())

    def stop(self) -> float:
        """The most it was, in megabytes."""
        self._done.set()
        self._thread.join()
        return max(self._most, own_memory())


def measure(count: int) -> dict[str, Any]:
    """Draws a folder, reads it as a run does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "images", count)
        before = own_memory()
        peak = Peak()
        began = time.perf_counter()
        _, found = PrivateRecords.intake(
            ImageFolder(folder / "images"),
            ImageSpec(28, 28, 1),
            (1, 28, 28),
            unit="image",
            classes=tuple(map(str, range(10))),
            folder=folder / "run",
            key=record_key(bytes(32)),
            fingerprint_key=bytes(32),
        )
        seconds = time.perf_counter() - began
    return {
        "images": found.images,
        "seconds": round(seconds, 2),
        "peak_mb": round(peak.stop() - before, 1),
    }


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """One a size."""
    return {str(count): partial(measure, count) for count in COUNTS}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    line: dict[str, Any] = {f"peak_mb_{name}": cell["peak_mb"] for name, cell in found.items()}
    if largest := found.get(str(COUNTS[-1])):
        line["images_per_second"] = round(largest["images"] / largest["seconds"])
    return line


if __name__ == "__main__":
    run("intake", cells, summary, settings={"size": [28, 28], "format": "png"})
