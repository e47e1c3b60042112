"""Public stand-ins for private records: pictures that code draws, canaries among them, and runs of their own.

Audits that train never see a private image, and never touch a user's ledger: each has a ledger in its own folder.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.privacy.ledger import Charge, Ledger
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import Plan
from sfumato.privacy.records import PrivateRecords
from sfumato.privacy.session import Session

DATASET = "audit-stand-in"
SHAPES = ("bars", "disc", "ring")
CANARY = "canary"
"""The class of canaries whose gradient is a Dirac vector."""


@dataclass(frozen=True)
class Picture:
    """One stand-in; `pixels` uint8 `(C, H, W)`."""

    identity: str
    label: str | None
    pixels: NDArray[np.uint8]
    person: str | None = None
    text: tuple[str, ...] = ()
    digest: bytes = bytes(16)
    fault: str | None = None


class Listed:
    """A `RecordSource` over pictures in memory."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = {picture.identity: picture for picture in sorted(pictures, key=lambda each: each.identity)}
        self.findings: Counter[str] = Counter()

    def entries(self) -> Iterator[Picture]:
        """By identity."""
        yield from self._pictures.values()

    def decode(self, identities: Iterable[str], spec: Any, key: bytes) -> Iterator[Picture]:
        """They are decoded."""
        return (self._pictures[identity] for identity in identities)


def drawn(count: int, side: int, seed: int) -> list[Picture]:
    """`count` grey drawings of `SHAPES` in turn, `(1, side, side)`; `seed` decides all of them."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1) * 2 - 1
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        a, b = random.uniform(-0.3, 0.3, 2)
        radius = np.hypot(x - a, y - b)
        shape = SHAPES[number % 3]
        ink = {"bars": np.sin(6 * (x + a)) > b, "disc": radius < 0.6 + a / 2, "ring": np.abs(radius - 0.6) < 0.2}
        pixels = (ink[shape] * 220 + 15).astype(np.uint8)[None]
        found.append(Picture(f"drawing-{seed}-{number:06d}.png", shape, pixels))
    return found


def numbered(count: int, shape: tuple[int, int, int]) -> list[Picture]:
    """Canaries that carry their own number in their first four bytes; see `canary_numbers`."""
    found = []
    for number in range(count):
        pixels = np.zeros(shape, dtype=np.uint8)
        pixels.reshape(-1)[:4] = np.frombuffer(number.to_bytes(4, "little"), dtype=np.uint8)
        found.append(Picture(f"canary-{number:06d}.png", CANARY, pixels))
    return found


def coins(count: int) -> NDArray[np.bool_]:
    """A fair coin for each canary, from the kernel's generator."""
    return Noise().poisson_mask(count, 0.5)


def open_run(
    pictures: Sequence[Picture],
    plan: Plan,
    folder: Path,
    noise: Noise,
    *,
    shape: tuple[int, int, int],
    classes: Sequence[str],
) -> Session:
    """A run of `plan` on stand-ins, with records, ledger and values in `folder`.

    With `TestNoise` the run is NOT PRIVATE, and its ledger says so.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ledger = Ledger.open(DATASET, folder / "ledger.jsonl")
    charge = Charge(plan.epsilon, plan.delta)
    ledger.charge(
        "audit", charge, plan.attempts(), plan.sha256(), plan.unit, "0" * 64, not_private=not noise.private
    )  # fmt: skip
    records, _ = PrivateRecords.intake(
        Listed(pictures),
        None,
        shape,
        unit=plan.unit,
        classes=classes,
        folder=folder / "private",
        key=os.urandom(32),
        fingerprint_key=bytes(32),
    )
    return Session(records, plan, ledger, "audit", folder, noise)
