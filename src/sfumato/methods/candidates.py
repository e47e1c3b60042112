"""The candidates of an evolution: captions and images that were made for it, each made once and kept on disk.

A candidate has a number for life. Its image, and what the embedder saw in it, are durable before any record votes, in
parts of a few dozen, so that a killed run repeats at most one part of one model's work (which may have cost money).
Everything here is public or post-processing of released votes; it lies in the private run folder only because a release
is made from an allow-list.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfumato._files import write_atomic, write_json
from sfumato.pretrained.interfaces import Embeddings, Images
from sfumato.pretrained.renders import Renders

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]
NO_PARENT = -1


class Draft(NamedTuple):
    """Candidates before anything is drawn.

    Attributes:
        texts: one caption each; empty where the image alone is the candidate.
        labels: int64 `(N,)`, class, 0 in an unconditional run.
        parents: int64 `(N,)`, number of the candidate they are variations of, or -1.
    """

    texts: list[str]
    labels: Numbers
    parents: Numbers


@dataclass
class Candidates:
    """All candidates of a run so far, by number.

    Attributes:
        folder: where they are kept.
        part: candidates that are drawn, embedded and stored at a time.
        texts: captions.
        labels: classes.
        parents: as in `Draft`.
        embeddings: float32 `(N, D)`; zeros for what could not be drawn.
        made: bool `(N,)`: there is an image (or, if captions vote, a caption).
        starts: first number of each generation.
    """

    folder: Path
    part: int = 64
    texts: list[str] = field(default_factory=list)
    labels: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    parents: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    embeddings: Embeddings = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    made: Flags = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    starts: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(
        self,
        draft: Callable[[], Draft],
        draw: Callable[[Draft, Numbers], Renders | None],
        embed: Callable[[Draft, Images | None, Numbers], Embeddings],
        progress: Callable[[int, int], None] = lambda *_: None,
        ahead: bool = True,
    ) -> Numbers:
        """Adds a generation; what is stored of it already is not made again.

        Args:
            draft: writes the captions.
            draw: makes the images of a part of them, given their numbers; None where captions vote.
            embed: what votes are compared with, float32 `(N, D)`, for a part.
            progress: told (images stored, images in all).
            ahead: the next part may be drawn while one is embedded; not where both ask the same model.

        Returns:
            The numbers of the generation.
        """
        generation = len(self.starts)
        first = len(self.texts)
        written = self._draft(generation, draft)
        numbers = np.arange(first, first + len(written.texts))
        embeddings, made = [], []
        parts = range(0, len(numbers), self.part)
        missing = [begin for begin in parts if not self._file(generation, begin).exists()]

        def drawn(begin: int) -> tuple[Draft, Renders | None]:
            part = slice(begin, begin + self.part)
            some = Draft(written.texts[part], written.labels[part], written.parents[part])
            return some, draw(some, numbers[part])

        with ThreadPoolExecutor(1) as painter:  # draws the next part while this one is embedded and stored
            coming = painter.submit(drawn, missing[0]) if missing else None
            for begin in parts:
                file = self._file(generation, begin)
                if coming is not None and begin in missing:
                    some, renders = coming.result()
                    later = missing.index(begin) + 1
                    if ahead and later < len(missing):
                        coming = painter.submit(drawn, missing[later])
                    _store(file, renders, embed(some, renders and renders.images, numbers[begin : begin + self.part]))
                    if not ahead and later < len(missing):
                        coming = painter.submit(drawn, missing[later])
                with np.load(file, allow_pickle=False) as kept:
                    embeddings.append(kept["embeddings"])
                    made.append(kept["made"])
                progress(min(begin + self.part, len(numbers)), len(numbers))
        self.starts.append(first)
        self.texts += written.texts
        self.labels = np.concatenate((self.labels, written.labels))
        self.parents = np.concatenate((self.parents, written.parents))
        if embeddings:
            before = self.embeddings if len(self.embeddings) else np.zeros((0, embeddings[0].shape[1]), np.float32)
            self.embeddings = np.concatenate((before, *embeddings))
            self.made = np.concatenate((self.made, *made))
        return numbers

    def images(self, numbers: Sequence[int] | Numbers) -> Images:
        """The stored images of some candidates, `(N, 3, H, W)`, in the order asked."""
        found: dict[int, NDArray[np.uint8]] = {}
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for number in {int(number) for number in numbers}:
            generation = int(np.searchsorted(self.starts, number, side="right")) - 1
            place = number - self.starts[generation]
            begin = place - place % self.part
            wanted.setdefault(self._file(generation, begin), []).append((number, place - begin))
        for file, rows in wanted.items():
            with np.load(file, allow_pickle=False) as kept:
                images = kept["images"]
            for number, row in rows:
                found[number] = images[row]
        return np.stack([found[int(number)] for number in numbers])

    def _file(self, generation: int, begin: int) -> Path:
        return self.folder / f"{generation:03}-{begin:06}.npz"

    def _draft(self, generation: int, write: Callable[[], Draft]) -> Draft:
        """The captions of a generation; durable first, for a text model may answer otherwise when asked again."""
        file = self.folder / f"{generation:03}.json"
        if not file.exists():
            draft = write()
            value = {"texts": draft.texts, "labels": draft.labels.tolist(), "parents": draft.parents.tolist()}
            write_json(file, value, mode=0o600)
        value = json.loads(file.read_text())
        return Draft(value["texts"], np.array(value["labels"], np.int64), np.array(value["parents"], np.int64))


def _store(file: Path, renders: Renders | None, seen: Embeddings) -> None:
    """Writes a part: what was drawn, what was seen in it, and which of it counts."""
    seen = seen.astype(np.float32)
    whole: Flags = np.all(np.isfinite(seen), axis=1)
    if renders is not None:
        whole = whole & renders.made
    seen[~whole] = 0
    stored: dict[str, NDArray[Any]] = {"embeddings": seen, "made": whole}
    if renders is not None:
        stored["images"] = renders.images
    buffer = io.BytesIO()
    np.savez(buffer, **stored)  # type: ignore[arg-type]
    write_atomic(file, buffer.getvalue(), mode=0o600)


def public_seed(*parts: object) -> int:
    """A seed of public randomness, 32 bits, for one purpose of one run; neighbours are far apart."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def distinct(texts: Sequence[str], labels: Numbers) -> Numbers:
    """Places of captions whose equal has not come before in the same class; case and spaces do not count.

    Candidates that differ in nothing would share votes between them, and each would get its own noise.
    """
    seen: dict[tuple[int, str], int] = {}
    for place, (text, label) in enumerate(zip(texts, labels.tolist(), strict=True)):
        seen.setdefault((label, " ".join(text.lower().split())), place)
    return np.array(list(seen.values()), dtype=np.int64)


def by_class(labels: Numbers) -> Iterator[tuple[int, Numbers]]:
    """Each class with the places of its candidates."""
    for label in np.unique(labels):
        yield int(label), np.flatnonzero(labels == label)
