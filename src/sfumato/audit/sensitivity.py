"""Sensitivity by brute force: what each record of a folder changes, record by record, touch by touch, un-noised.

The folder holds real files that code draws: ordinary ones, one that cannot be read, one on which every per-record
function breaks (NaN), and one whose vector and gradient are far too long. Each record is taken out of the folder, the
folder is read again with the same key, and the un-noised results are compared.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from sfumato.audit.standins import SHAPES, drawn
from sfumato.data.decode import ImageSpec
from sfumato.data.folder import ImageFolder
from sfumato.privacy.histogram import count_votes
from sfumato.privacy.plan import HistogramTouch, SumTouch, TrainingTouch, Unit
from sfumato.privacy.records import PrivateRecords, Rows
from sfumato.privacy.sums import GRID, grid_sum
from sfumato.privacy.training import Crew

SIDE = 8
IMAGES = 12
PERSONS = 5
CELLS, VOTES = 9, 2
_KEY = bytes(range(32))
_UNUSUAL = 255  # the level of a white picture, on which everything is NaN
HISTOGRAM = HistogramTouch("votes", cells=VOTES, rounds=1, scale=1.0)
SUM = SumTouch("sum", clip_norm=1.5, attempts=1, noise_multiplier=1.0)
TRAINING = TrainingTouch("training", 1.0, 1, noise_multiplier=1.0, clip_norm=0.7, rows=2, slack=1e-6)


@dataclass(frozen=True)
class Sensitivity:
    """The most that one record of the folder changed.

    Attributes:
        touch: which.
        unit: what a record was.
        largest: change found: cells changed, or Euclidean norm in units of the bound.
        bound: what the price assumes.
        neighbours: folders compared with the whole one.
        exact: every changed cell changed by exactly 1 (histograms; True elsewhere).
    """

    touch: str
    unit: Unit
    largest: float
    bound: float
    neighbours: int
    exact: bool = True

    @property
    def broken(self) -> bool:
        """Whether a record did more than it is priced for."""
        return not self.exact or not self.largest <= self.bound

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "broken": self.broken}


def brute_force(folder: Path) -> list[Sensitivity]:
    """Every touch, for unit image and for unit person.

    Args:
        folder: temporary; the files are written here.
    """
    found = []
    for unit in ("image", "person"):
        place = folder / unit
        everyone = make_folder(place)
        whole = results(place, folder / "private", unit, len(everyone[unit]))
        changes = []
        for name, files in everyone[unit].items():
            with without(place, files):
                rest = results(place, folder / "private", unit, len(everyone[unit]) - 1)
            changes.append((name, [one - other for one, other in zip(whole, rest, strict=True)]))
        found += _largest(unit, [change for _, change in changes])
    return found


def _largest(unit: Unit, changes: list[list[NDArray[np.float64]]]) -> list[Sensitivity]:
    votes, sums, gradients = zip(*changes, strict=True)
    exact = all(set(np.unique(change)) <= {0.0, 1.0} for change in votes)
    norms = [[float(np.linalg.norm(change)) for change in part] for part in (sums, gradients)]
    return [
        Sensitivity("noisy histogram", unit, max(float((v != 0).sum()) for v in votes), VOTES, len(votes), exact),
        Sensitivity("noisy sum", unit, max(norms[0]) / GRID, 1.0, len(sums)),
        Sensitivity("private training", unit, max(norms[1]) / TRAINING.clip_norm, 1 + TRAINING.slack, len(gradients)),
    ]


def make_folder(place: Path) -> dict[Unit, dict[str, list[str]]]:
    """Writes the images with their persons; returns the files of every record, by unit."""
    place.mkdir(parents=True)
    lines = []
    persons: dict[str, list[str]] = {f"person {number}": [] for number in range(PERSONS)}
    for number, picture in enumerate(drawn(IMAGES, SIDE, seed=1)):
        name, person = f"{number:02d}.png", f"person {number % PERSONS}"
        pixels = np.full((SIDE, SIDE), _UNUSUAL, dtype=np.uint8) if number == 4 else picture.pixels[0]
        Image.fromarray(pixels).save(place / name)
        if number == 7:
            (place / name).write_bytes((place / name).read_bytes()[:30])  # cannot be read
        persons[person].append(name)
        lines.append({"file_name": name, "label": picture.label, "person_id": person})
    (place / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"image": {name: [name] for files in persons.values() for name in files}, "person": persons}


@contextlib.contextmanager
def without(place: Path, files: list[str]) -> Iterator[None]:
    """The folder with some files taken out of it, and out of its metadata."""
    metadata = (place / "metadata.jsonl").read_text()
    kept = [line for line in metadata.splitlines() if json.loads(line)["file_name"] not in files]
    held = {name: (place / name).read_bytes() for name in files}
    (place / "metadata.jsonl").write_text("".join(line + "\n" for line in kept))
    for name in files:
        (place / name).unlink()
    try:
        yield
    finally:
        for name, data in held.items():
            (place / name).write_bytes(data)
        (place / "metadata.jsonl").write_text(metadata)


def results(place: Path, private: Path, unit: Unit, count: int) -> list[NDArray[np.float64]]:
    """The three un-noised results on a folder of `count` records."""
    spec = ImageSpec(SIDE, SIDE, 1)
    records, _ = PrivateRecords.intake(
        ImageFolder(place, workers=0),
        spec,
        spec.shape,
        unit=unit,
        classes=SHAPES[:2],  # the third is not declared
        folder=private,
        key=_KEY,
        fingerprint_key=_KEY,
    )
    votes = count_votes(records, HISTOGRAM, 1, _brightest, CELLS).astype(np.float64)
    sums = grid_sum(records, SUM, 1, _pixels, (2, SIDE * SIDE)).astype(np.float64)
    with contextlib.closing(Crew(_Fits(), TRAINING, 4, "fp32", 1)) as crew:
        gradients = crew.clipped_sum(records, 1, np.arange(count)).numpy().copy()
    return [votes, sums, gradients]


def _light(rows: Rows) -> Tensor:
    """Pixels from 0 to 1; infinite where the picture is white."""
    pixels = rows.images.float() / _UNUSUAL
    return pixels / (pixels.mean((1, 2, 3), keepdim=True) < 1).float()


def _brightest(rows: Rows) -> Tensor:
    """The two brightest lines, shifted by a draw and the class; a white picture votes out of range."""
    lines = rows.images.float().sum((1, 3)) + rows.draws.uniform("tie", SIDE)
    best = lines.topk(VOTES, dim=1).indices + rows.labels.clamp(min=0)[:, None]
    return torch.where((rows.images == _UNUSUAL).flatten(1).all(1)[:, None], 10 * CELLS, best)


def _pixels(rows: Rows) -> tuple[Tensor, Tensor]:
    return rows.labels.clamp(min=0), (_light(rows) * 2 - 1).flatten(1)


class _Fits:
    """A small network whose loss is steep for some records, uses their draws, and breaks on white pictures."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 6), nn.Tanh(), nn.Linear(6, 2))
        with torch.no_grad():
            for number, parameter in enumerate(self.model.parameters()):
                flat = torch.linspace(-1, 1, parameter.numel()) * math.pi * (number + 1)
                parameter.copy_(flat.sin().view_as(parameter) / 4)

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        jitter = rows.draws.normal("jitter", TRAINING.rows, SIDE * SIDE).view(-1, 1, SIDE, SIDE)
        steep = 10.0 ** (rows.labels.clamp(min=0) * 4)
        loss: Tensor = (model(_light(rows) + 0.1 * jitter) - 1).square().sum(1) * steep
        return loss
