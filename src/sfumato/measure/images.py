"""Image folders as arrays, for measuring. What is read here may be private; the caller puts the look on the ledger."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sfumato.data.decode import FORMATS, ImageSpec, open_regular
from sfumato.data.folder import ImageFolder
from sfumato.errors import UserError

LONGEST_SIDE = 512
SEED = 0  # of the choice among images, where only some are wanted
_KEY = bytes(16)  # of the files' digests, which are not used


class Labelled(NamedTuple):
    """Images with labels: pixels uint8 `(N, C, H, W)`, labels int64 `(N,)`, class names by label."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def numbered(self, classes: tuple[str, ...]) -> Labelled:
        """The same images with labels numbered by `classes`, which must hold every class present."""
        return Labelled(self.pixels, np.array([classes.index(name) for name in self.classes])[self.labels], classes)

    @property
    def spec(self) -> ImageSpec:
        """The shape of the images."""
        return ImageSpec(self.pixels.shape[2], self.pixels.shape[3], self.pixels.shape[1])


def read_folder(
    folder: Path, spec: ImageSpec | None = None, *, classes: Collection[str] | None = None, limit: int | None = None
) -> Labelled:
    """All images of a folder, such as a release, that can be read and have a label, in the order of their names.

    Args:
        folder: class sub-folders, or images with `metadata.jsonl`.
        spec: the shape all images are brought to; default: that of the first image.
        classes: images of other classes are left out.
        limit: most images; if there are more, as many are chosen at random, always the same.

    Raises:
        UserError: there are none.
    """
    spec = spec or spec_of(folder)
    source = ImageFolder(folder)
    entries = [entry for entry in source.entries() if entry.label is not None]
    if classes is not None:
        entries = [entry for entry in entries if entry.label in classes]
    if limit is not None:
        entries = [entries[index] for index in sorted(_shuffled(len(entries))[:limit])]
    decoded = source.decode((entry.identity for entry in entries), spec, _KEY)
    read = [
        (image.pixels, str(entry.label))
        for image, entry in zip(decoded, entries, strict=True)
        if image.pixels is not None
    ]
    if not read:
        listed = "" if classes is None else f" of the classes {', '.join(sorted(classes))}"
        raise UserError(f"There are no readable images with labels{listed} in {folder}.")
    names = tuple(sorted({label for _, label in read}))
    number = {name: index for index, name in enumerate(names)}
    return Labelled(np.stack([pixels for pixels, _ in read]), np.array([number[label] for _, label in read]), names)


def read_images(folder: Path, spec: ImageSpec, limit: int) -> Iterator[np.ndarray]:
    """At most `limit` images of a folder, labelled or not, chosen at random and always the same; none is kept.

    Args:
        folder: any folder of images; those that cannot be read are passed over.
        spec: the shape all images are brought to.
        limit: most images.

    Yields:
        uint8 `(C, H, W)`.
    """
    return (pixels for pixels, _ in read_captioned(folder, spec, limit))


def read_captioned(folder: Path, spec: ImageSpec, limit: int) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
    """As `read_images`, each image with its captions."""
    source = ImageFolder(folder)
    entries = list(source.entries())
    order = [entries[index] for index in _shuffled(len(entries))]
    decoded = zip(source.decode((entry.identity for entry in order), spec, _KEY), order, strict=True)
    return itertools.islice(((image.pixels, entry.text) for image, entry in decoded if image.pixels is not None), limit)


def spec_of(folder: Path, longest: int = LONGEST_SIDE) -> ImageSpec:
    """The shape of the folder's first readable image.

    Raises:
        UserError: there is none, or a side is longer than `longest` pixels.
    """
    for entry in ImageFolder(folder, workers=0).entries():
        try:
            with open_regular(Path(folder), entry.identity.split("/")) as file:
                image = Image.open(file, formats=FORMATS)
                width, height = image.size
                grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        if max(width, height) > longest:
            raise UserError(
                f"The images in {folder} have sides of more than {longest} pixels; name the shape to bring them to."
            )
        return ImageSpec(height, width, 1 if grey else 3)
    raise UserError(f"There are no readable images in {folder}.")


def _shuffled(count: int) -> list[int]:
    order: list[int] = np.random.default_rng(SEED).permutation(count).tolist()
    return order
