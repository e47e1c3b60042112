"""Private collections held in memory, for tests that add and remove records."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.privacy.captions import Describe
from sfumato.privacy.records import PrivateRecords, Unit

SHAPE = (1, 8, 8)
KEY = b"k" * 32


@dataclass(frozen=True)
class Picture:
    """One image; `pixels` None stands for a file that cannot be read."""

    identity: str
    pixels: NDArray[np.uint8] | None
    label: str | None = None
    person: str | None = None
    text: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Decoded:
    digest: bytes
    pixels: NDArray[np.uint8] | None
    fault: str | None


class MemorySource:
    """A `RecordSource` over a list of pictures."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = {picture.identity: picture for picture in sorted(pictures, key=lambda p: p.identity)}
        self.findings: Counter[str] = Counter()

    def entries(self) -> Iterator[Picture]:
        yield from self._pictures.values()

    def decode(self, identities: Iterable[str], spec: Any, key: bytes) -> Iterator[_Decoded]:
        for identity in identities:
            pixels = self._pictures[identity].pixels
            data = b"" if pixels is None else pixels.tobytes()
            digest = hashlib.blake2b(data, key=key, digest_size=16).digest()
            yield _Decoded(digest, pixels, "truncated" if pixels is None else None)


def picture(number: int, label: str | None = None, person: str | None = None, readable: bool = True) -> Picture:
    """A picture that its number decides."""
    values = np.frombuffer(hashlib.shake_128(str(number).encode()).digest(64), dtype=np.uint8).reshape(SHAPE)
    return Picture(f"image-{number:04d}.png", values if readable else None, label, person)


def held(
    pictures: Sequence[Picture],
    folder: Path,
    *,
    unit: Unit = "image",
    classes: Sequence[str] | None = None,
    describe: Describe | None = None,
) -> PrivateRecords:
    """The pictures as private records."""
    records, _ = PrivateRecords.intake(
        MemorySource(pictures),
        None,
        SHAPE,
        unit=unit,
        classes=classes,
        folder=folder,
        key=KEY,
        fingerprint_key=KEY,
        describe=describe,
    )
    return records
