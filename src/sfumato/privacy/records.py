"""What one record is, and the only way to reach it.

`PrivateRecords` holds a private folder for the three touches. It has no length, order, items or telling `repr`;
everything that reads it lives in this package. A record is one image (unit `image`) or all images of one person (unit
`person`). What a record contributes never depends on another record: nothing here compares, merges or drops records.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import InternalError, PrivacyRefusal, UserError
from sfumato.privacy.captions import Captions, CaptionWriter, Describe
from sfumato.privacy.draws import Draws

Unit = Literal["image", "person"]
NO_LABEL = -1


class RecordEntry(Protocol):
    """One image that a source knows of, before it is decoded."""

    @property
    def identity(self) -> str:
        """What names this image within its source, whatever else is there."""

    @property
    def label(self) -> str | None:
        """Class name, or None."""

    @property
    def person(self) -> str | None:
        """Who is protected by unit `person`, or None."""

    @property
    def text(self) -> Sequence[str]:
        """Captions."""


class DecodedImage(Protocol):
    """What decoding one image gave."""

    @property
    def digest(self) -> bytes:
        """Keyed digest of the file's bytes, 16 bytes."""

    @property
    def pixels(self) -> NDArray[np.uint8] | None:
        """`(C, H, W)`, or None for an image that cannot be read."""

    @property
    def fault(self) -> str | None:
        """Why there are no pixels."""


class RecordSource(Protocol):
    """A private collection that can be read once, in order, with bounded memory (`data/folder.py`)."""

    def entries(self) -> Iterator[RecordEntry]:
        """Every image, ordered by identity."""

    def decode(self, identities: Iterable[str], spec: Any, key: bytes) -> Iterator[DecodedImage]:
        """Pixels of the named images at the public shape `spec`, in the order asked."""

    @property
    def findings(self) -> Counter[str]:
        """What was odd about the collection, for the internal intake report."""


class Rows(NamedTuple):
    """A chunk of records as per-record functions see it: R records with K rows each, a record's rows together.

    Attributes:
        images: uint8 `(R K, C, H, W)`; zeros where a record contributes nothing.
        labels: int64 `(R K,)`, index into the declared classes, or -1.
        present: bool `(R,)`: False for fillers of the constant shape and for null contributions. Per-record functions
            need not look at it: what they compute for such records is discarded.
        draws: per-record randomness; its results have R as first dimension.
        captions: float32 `(R K, size)`, the vector of one caption of each image, or zeros; None where captions are not
            read.
    """

    images: Tensor
    labels: Tensor
    present: Tensor
    draws: Draws
    captions: Tensor | None = None

    def to(self, device: torch.device) -> Rows:
        """The same rows with their tensors on a device."""
        captions = None if self.captions is None else self.captions.to(device)
        return Rows(self.images.to(device), self.labels.to(device), self.present.to(device), self.draws, captions)


class IntakeReport(NamedTuple):
    """What intake found; internal to the run folder.

    Attributes:
        images: images in the collection.
        records: records of the chosen unit.
        unreadable: images that contribute nothing because they cannot be read.
        unlisted: images that contribute nothing because their class is not declared.
        captions: of all images; 0 where they are not read.
        findings: counts by kind.
        fingerprint: keyed digest of the whole collection.
        digests: keyed digests of the files, 16 bytes each.
    """

    images: int
    records: int
    unreadable: int
    unlisted: int
    captions: int
    findings: dict[str, int]
    fingerprint: str
    digests: bytes


class PrivateRecords:
    """Private records, decoded once into a file of the run folder and read from there in chunks.

    Guarantee:
        Offers no item, length, order or count outside `sfumato.privacy`. Chunks have one constant shape. Which images
        a record shows, and all its randomness, depend on that record and the run's key alone.

    Does not cover:
        Code that reaches for underscored names; other processes of the same user, who can read the run folder.
    """

    def __init__(
        self,
        *,
        unit: Unit,
        key: bytes,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int32],
        usable: NDArray[np.bool_],
        starts: NDArray[np.int64],
        order: NDArray[np.int64],
        identities: NDArray[np.uint8],
        captions: Captions | None,
    ) -> None:
        """Use `intake`. Record r owns images `order[starts[r]:starts[r + 1]]`; `identities` is `(R, 16)`."""
        self._unit, self._key = unit, key
        self._pixels, self._labels, self._usable = pixels, labels, usable
        self._starts, self._order, self._identities, self._captions = starts, order, identities, captions

    def __repr__(self) -> str:
        return f"PrivateRecords(unit={self._unit!r})"

    def __reduce__(self) -> Any:
        raise PrivacyRefusal("Private records are not pickled or copied to other processes.")

    @property
    def unit(self) -> Unit:
        """The protected unit, public."""
        return self._unit

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`, public."""
        channels, height, width = self._pixels.shape[1:]
        return channels, height, width

    @classmethod
    def intake(
        cls,
        source: RecordSource,
        spec: Any,
        shape: tuple[int, int, int],
        *,
        unit: Unit,
        classes: Sequence[str] | None,
        folder: Path,
        key: bytes,
        fingerprint_key: bytes,
        describe: Describe | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> tuple[PrivateRecords, IntakeReport]:
        """Reads a collection once.

        Args:
            source: the collection.
            spec: public image shape and conversion rules, handed to `source.decode`.
            shape: `(C, H, W)` of what `spec` produces.
            unit: what one record is.
            classes: declared class names, or None for an unconditional run (labels are then not looked at).
            folder: private folder of the run; holds the decoded pixels.
            key: 32 bytes of this run, for per-record randomness.
            fingerprint_key: 32 bytes of this user, for fingerprints.
            describe: embeds captions, for private training; None leaves them unread.
            progress: told the stage once per image; of captions first, where they are read.

        Returns:
            The records, and the internal report.

        Raises:
            UserError: unit `person` and an image without a person.
        """
        index = None if classes is None else {name: number for number, name in enumerate(classes)}
        labels, owners = array("i"), array("q")
        people: dict[str, int] = {}
        identities = bytearray()
        names: list[str] = []
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        writer, told = None if describe is None else CaptionWriter(describe, folder), hashlib.sha256()
        for entry in source.entries():
            names.append(entry.identity)
            if writer is not None:
                writer.add(entry.text)
                told.update(json.dumps(entry.text).encode())
                progress("reading captions")
            labels.append(NO_LABEL if index is None else index.get(entry.label or "", -2))
            if unit == "person" and entry.person is None:
                raise UserError(
                    "Unit 'person' needs a person_id for every image, and one has none. Add it to metadata.jsonl, or "
                    "protect single images with --unit image."
                )
            owner = entry.person if unit == "person" and entry.person is not None else entry.identity
            if unit == "image" or owner not in people:
                if unit == "person":
                    people[owner] = len(people)
                identities += hmac.digest(key, owner.encode("utf-8", "surrogateescape"), "sha256")[:16]
            owners.append(people[owner] if unit == "person" else len(names) - 1)
        count = len(names)
        captions = None if writer is None else writer.finished()
        file = folder / "pixels.u8"
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
        pixels: NDArray[np.uint8] = (
            np.memmap(file, dtype=np.uint8, mode="r+", shape=(count, *shape))
            if count
            else np.zeros((0, *shape), dtype=np.uint8)
        )
        usable = np.zeros(count, dtype=np.bool_)
        digests = bytearray()
        findings: Counter[str] = Counter()
        for number, image in enumerate(source.decode(iter(names), spec, fingerprint_key)):
            digests += image.digest
            if image.pixels is not None:
                pixels[number] = image.pixels
                usable[number] = True
            else:
                findings[str(image.fault)] += 1
            progress("reading images")
        if len(digests) != 16 * count:
            raise InternalError("the source did not decode every image it had named")
        label_array = np.frombuffer(labels, dtype=np.int32).copy() if count else np.zeros(0, dtype=np.int32)
        owner_array = np.frombuffer(owners, dtype=np.int64) if count else np.zeros(0, dtype=np.int64)
        unreadable, unlisted = int((~usable).sum()), int((label_array == -2).sum())
        order = np.argsort(owner_array, kind="stable")
        order = order[usable[order]]
        usable &= label_array != -2
        label_array[label_array == -2] = NO_LABEL
        records = len(identities) // 16
        starts = np.searchsorted(owner_array[order], np.arange(records + 1)).astype(np.int64)
        fingerprint = hmac.new(fingerprint_key, digestmod="sha256")
        for name, number in zip(names, range(count), strict=True):
            fingerprint.update(
                name.encode("utf-8", "surrogateescape") + b"\0" + digests[16 * number : 16 * number + 16]
            )
        if captions is not None:
            fingerprint.update(told.digest())
        report = IntakeReport(
            images=count,
            records=records,
            unreadable=unreadable,
            unlisted=unlisted,
            captions=0 if captions is None else len(captions.vectors),
            findings=dict(findings + source.findings),
            fingerprint=fingerprint.hexdigest(),
            digests=bytes(digests),
        )
        held = cls(
            unit=unit,
            key=key,
            pixels=pixels,
            labels=label_array,
            usable=usable,
            starts=starts,
            order=order,
            identities=np.frombuffer(bytes(identities), dtype=np.uint8).reshape(-1, 16),
            captions=captions,
        )
        return held, report

    def _size(self) -> int:
        """Number of records; for the touches only."""
        return len(self._identities)

    def _chunks(
        self, chosen: NDArray[np.int64], size: int, rows: int, touch: str, step: int, captions: bool = False
    ) -> Iterator[tuple[Rows, NDArray[np.int64]]]:
        """Yields `chosen` records in chunks of exactly `size`, with the record numbers of each chunk.

        Each of a record's `rows` rows shows one of its readable images, drawn from all of them whatever their class. A
        record without any, or one that shows an image of a class that is not declared, contributes nothing. With
        `captions`, where they were read, each row also has one of its image's captions; for private training alone.
        """
        channels, height, width = self.image_shape
        for begin in range(0, len(chosen), size):
            part = chosen[begin : begin + size]
            images = np.zeros((size, rows, channels, height, width), dtype=np.uint8)
            labels = np.full((size, rows), NO_LABEL, dtype=np.int64)
            present = np.zeros(size, dtype=np.bool_)
            names = [self._identities[record].tobytes() for record in part]
            names += [bytes(16)] * (size - len(part))
            draws = Draws(self._key, touch, step, names)
            owned = np.zeros(size, dtype=np.int64)
            owned[: len(part)] = self._starts[part + 1] - self._starts[part]
            picks = np.zeros((size, rows), dtype=np.int64)
            if self._unit == "person":
                for row in range(rows):
                    picks[:, row] = draws.integers(f"image {row}", torch.from_numpy(owned)).numpy()
            shown = np.flatnonzero(owned)
            numbers = self._order[self._starts[part[shown]][:, None] + picks[shown]]
            kept = self._usable[numbers].all(axis=1)
            shown, numbers = shown[kept], numbers[kept]
            present[shown] = True
            images[shown], labels[shown] = self._pixels[numbers], self._labels[numbers]
            told = self._captions.drawn(shown, numbers, draws, size) if captions and self._captions else None
            yield (
                Rows(
                    torch.from_numpy(images).flatten(0, 1),
                    torch.from_numpy(labels).flatten(),
                    torch.from_numpy(present),
                    draws,
                    told,
                ),
                part,
            )


def record_key(seed: bytes) -> bytes:
    """Derives a run's key for per-record randomness from 32 stored bytes."""
    return hashlib.sha256(b"sfumato record key" + seed).digest()
