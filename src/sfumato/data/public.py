"""Public image folders that a method learns from before it meets a private record.

Nothing here depends on private data: which folders, and how their pictures are brought to the form of the run, are
public settings. What is read is named in the privacy statement by its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decode import ImageSpec, open_regular
from sfumato.data.folder import METADATA, Entry, ImageFolder
from sfumato.errors import UserError

Ground = Literal["any", "dark", "light"]
Fit = Literal["crop", "pad", "stretch"]

Progress = Callable[[int, int], None]

SOURCE = "SOURCE.json"
TOLD = 256  # files between two reports of progress
MOST_LICENCES = 8
_KEY = bytes(16)  # of the files' digests, which are not used


class PublicSet(NamedTuple):
    """Public images in memory.

    Attributes:
        pixels: uint8 `(N, C, H, W)`.
        labels: int64 `(N,)`, index into `classes`; None if an image has no label.
        classes: sorted; empty without labels.
        captions: of each image.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class PublicIdentity:
    """What a statement says of a public folder.

    Attributes:
        name: as `SOURCE.json` has it, or None.
        images: files listed.
        sha256: over names, labels, captions and bytes of all of them.
        licences: as `SOURCE.json` or the lines of `metadata.jsonl` have them, sorted.
    """

    name: str | None
    images: int
    sha256: str
    licences: tuple[str, ...]

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> PublicIdentity:
        """Restores what `dataclasses.asdict` gave, after JSON."""
        return cls(**facts | {"licences": tuple(facts["licences"])})

    def __str__(self) -> str:
        name = f" '{self.name}'" if self.name else ""
        licences = "; ".join(self.licences) or "not stated in the folder"
        return f"{self.images} public images{name} (sha256 {self.sha256}; licences: {licences})"


class PublicImages:
    """One or more folders of public images, labelled or not. Nothing is read until a method needs it.

    Args:
        folders: class sub-folders, flat, or with `metadata.jsonl`, as `ImageFolder`; `sfumato data fetch` makes such.
        ground: "dark" inverts every picture whose edge is lighter than mid-grey, "light" every one whose edge is
            darker; "any" leaves pictures as they are. Clip art is dark on white, much else is light on black.
        fit: how pictures are brought to the shape of the run; default: as private ones are.

    Raises:
        UserError: no folder, or a value that is not allowed.
    """

    def __init__(self, *folders: str | os.PathLike[str], ground: Ground = "any", fit: Fit | None = None) -> None:
        if not folders:
            raise UserError("Public images need a folder; give at least one.")
        if ground not in get_args(Ground):
            raise UserError(f"The ground is {ground!r}; give 'any', 'dark' or 'light'.")
        if fit is not None and fit not in get_args(Fit):
            raise UserError(f"The fit of public images is {fit!r}; give 'crop', 'pad' or 'stretch'.")
        self.folders = tuple(Path(folder).absolute() for folder in folders)
        self.ground, self.fit = ground, fit

    def settings(self) -> dict[str, Any]:
        """What the settings of a run keep of it."""
        return {"folders": [str(folder) for folder in self.folders], "ground": self.ground, "fit": self.fit}

    def check(self, private: Path | None = None, others: Sequence[Path] = ()) -> None:
        """Refuses folders that are missing, or that overlap the private folder or one that will be written.

        Raises:
            UserError: one is.
        """
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"The public folder {folder} does not exist or is not a folder.")
            place = folder.resolve()
            for name, other in (("private", private), *(("output", other) for other in others)):
                if other is None:
                    continue
                there = other.resolve()
                if place == there or there in place.parents or place in there.parents:
                    raise UserError(
                        f"The public folder {folder} and the {name} folder {other} overlap; public images must lie in "
                        "a folder of their own."
                    )

    def identities(self) -> tuple[PublicIdentity, ...]:
        """Who the folders are; reads every file once.

        Raises:
            UserError: a folder is missing or holds no image.
        """
        return tuple(_identity(folder) for folder in self.folders)

    def classes(self) -> tuple[str, ...]:
        """Class names, sorted; empty if an image has no label. Opens no image."""
        names = {name for _, entries in self._by_folder() for name, _ in entries}
        return () if None in names else tuple(sorted(name for name in names if name is not None))

    def captions(self) -> tuple[str, ...]:
        """All captions, each once, sorted. Opens no image."""
        return tuple(sorted({text for _, entries in self._by_folder() for _, entry in entries for text in entry.text}))

    def read(self, spec: ImageSpec, progress: Progress = lambda *_: None) -> PublicSet:
        """All pictures that can be read, at the shape of the run, in the order of their names.

        Args:
            spec: the public shape, as private images are brought to it; `fit` replaces its own.
            progress: told (files done, files in all).

        Raises:
            UserError: a folder is missing, or no picture can be read.
        """
        spec = spec if self.fit is None else replace(spec, fit=self.fit)
        pixels, labels, texts, done = [], [], [], 0
        folders = list(self._by_folder())
        total = sum(len(entries) for _, entries in folders)
        for folder, entries in folders:
            source = ImageFolder(folder)
            decoded = source.decode((entry.identity for _, entry in entries), spec, _KEY)
            for (label, entry), image in zip(entries, decoded, strict=True):
                done += 1
                if done % TOLD == 0 or done == total:
                    progress(done, total)
                if image.pixels is not None:
                    pixels.append(image.pixels)
                    labels.append(label)
                    texts.append(entry.text)
        if not pixels:
            raise UserError(f"There are no readable images in the public folder {self.folders[0]}.")
        images = _on_ground(np.stack(pixels), self.ground)
        names = [label for label in labels if label is not None]
        if len(names) < len(labels):
            return PublicSet(images, None, (), tuple(texts))
        classes = tuple(sorted(set(names)))
        number = {name: index for index, name in enumerate(classes)}
        return PublicSet(images, np.array([number[name] for name in names], dtype=np.int64), classes, tuple(texts))

    def read_again(
        self, known: Sequence[dict[str, Any]], spec: ImageSpec, progress: Progress = lambda *_: None
    ) -> PublicSet:
        """As `read`, for a run that began with the sets `known` (`to_facts` of their identities).

        Raises:
            UserError: as `read`; or the folders are not what they were.
        """
        self.check()
        if to_facts(self.identities()) != list(known):
            raise UserError(
                "The public images are not what they were when this run began, so it cannot be resumed; restore them."
            )
        return self.read(spec, progress)

    def decides(self, known: Sequence[dict[str, Any]], spec: ImageSpec) -> list[Any]:
        """Everything that decides what `read_again` gives, JSON values: names what is kept for further runs."""
        return [[one["sha256"] for one in known], self.ground, self.fit, asdict(spec)]

    def _by_folder(self) -> Iterator[tuple[Path, list[tuple[str | None, Entry]]]]:
        """Entries with class names; among several folders a name begins with the set's name, or its number."""
        names = [_origin(folder)[0] for folder in self.folders]
        for number, (folder, name) in enumerate(zip(self.folders, names, strict=True), 1):
            prefix = f"{name if name and names.count(name) == 1 else number}/" if len(names) > 1 else ""
            entries = ImageFolder(folder, workers=0).entries()
            yield folder, [(None if entry.label is None else prefix + entry.label, entry) for entry in entries]


def _on_ground(pixels: NDArray[np.uint8], ground: Ground) -> NDArray[np.uint8]:
    """Inverts the pictures whose edge, the outermost pixels, is not of the wanted ground."""
    if ground == "any":
        return pixels
    edges = (pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1])
    light = np.concatenate([edge.reshape(len(pixels), -1) for edge in edges], axis=1).mean(axis=1) > 127.5
    wrong = light == (ground == "dark")
    return np.where(wrong[:, None, None, None], 255 - pixels, pixels)


def _identity(folder: Path) -> PublicIdentity:
    digest, images = hashlib.sha256(), 0
    for entry in ImageFolder(folder, workers=0).entries():
        try:
            with open_regular(folder, entry.identity.split("/")) as file:
                content = hashlib.sha256(file.read()).hexdigest()
        except OSError:
            content = "unreadable"
        line = json.dumps([entry.identity, entry.label, content, *entry.text])
        digest.update(line.encode() + b"\n")
        images += 1
    if not images:
        raise UserError(f"There are no images in the public folder {folder}.")
    name, licences = _origin(folder)
    return PublicIdentity(name, images, digest.hexdigest(), licences)


def _origin(folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """Name and licences as the folder itself states them."""
    try:
        source = json.loads((folder / SOURCE).read_text())
        name, licence = source.get("name"), source.get("licence")
    except (OSError, ValueError, AttributeError):
        name = licence = None
    licences = {licence} if isinstance(licence, str) else set()
    if not licences:
        try:
            with open(folder / METADATA, encoding="utf-8") as lines:
                licences = {found for line in lines if isinstance(found := json.loads(line).get("licence"), str)}
        except (OSError, ValueError, AttributeError):
            licences = set()
    listed = sorted(licences)
    if len(listed) > MOST_LICENCES:
        listed = [*listed[:MOST_LICENCES], f"and {len(listed) - MOST_LICENCES} more"]
    return name if isinstance(name, str) else None, tuple(listed)


def to_facts(identities: Sequence[PublicIdentity]) -> list[dict[str, Any]]:
    """Identities as JSON values; `PublicIdentity.from_json` restores one."""
    return [asdict(identity) | {"licences": list(identity.licences)} for identity in identities]
