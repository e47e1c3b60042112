"""Captions of private images, as vectors of a frozen public text embedder; for private training alone.

Texts themselves are not kept. A caption's vector is a function of that caption, so it tells of its own record only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import InternalError
from sfumato.privacy.draws import Draws

Describe = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors, `(N, size)`, each a function of its own text."""

TOGETHER = 64  # texts a call, always: another number could change last bits


@dataclass(frozen=True, repr=False)
class Captions:
    """Vectors of all captions of a collection.

    Attributes:
        vectors: float32 `(V, size)`, image by image.
        starts: int64 `(images + 1,)`: image n has those from `starts[n]` up to `starts[n + 1]`.
    """

    vectors: NDArray[np.float32]
    starts: NDArray[np.int64]

    def drawn(self, places: NDArray[np.int64], images: NDArray[np.int64], draws: Draws, records: int) -> Tensor:
        """One caption for each row of a chunk, float32 `(records rows, size)`; zeros where there is none.

        Guarantee:
            Which of an image's captions is told, is a draw of its own record's.

        Args:
            places: of the records that show something, `(n,)`.
            images: numbers of what they show, `(n, rows)`.
            draws: of the chunk.
            records: of the chunk, fillers among them.
        """
        rows = images.shape[1]
        told = np.zeros((records, rows, self.vectors.shape[1]), dtype=np.float32)
        counts = np.zeros((records, rows), dtype=np.int64)
        counts[places] = self.starts[images + 1] - self.starts[images]
        for row in range(rows):
            picks = draws.integers(f"caption {row}", torch.from_numpy(counts[:, row])).numpy()[places]
            some = counts[places, row] > 0
            told[places[some], row] = self.vectors[self.starts[images[some, row]] + picks[some]]
        return torch.from_numpy(told).flatten(0, 1)


class CaptionWriter:
    """Embeds captions as they come, in calls of constant shape, into a file of the private folder.

    Guarantee:
        Of a text nothing but its vector is kept, on disk (mode 0600) or in memory.

    Does not cover:
        What `describe` does with a text: it must be frozen, public and in this process, or behind the wall.
    """

    def __init__(self, describe: Describe, folder: Path) -> None:
        """Begins a file of its own: one that another process of the same run writes is not touched."""
        file = folder / "captions.f32"
        file.unlink(missing_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._describe, self._file = describe, os.fdopen(handle, "w+b")
        self._size = describe([""] * TOGETHER).shape[1]
        self._waiting: list[str] = []
        self._starts = [0]

    def add(self, texts: Sequence[str]) -> None:
        """The captions of the next image."""
        self._waiting += texts
        self._starts.append(self._starts[-1] + len(texts))
        while len(self._waiting) >= TOGETHER:
            self._write(self._waiting[:TOGETHER])
            del self._waiting[:TOGETHER]

    def finished(self) -> Captions:
        """All vectors, read from the file when they are needed."""
        if self._waiting:
            self._write(self._waiting)
            self._waiting = []
        count = self._starts[-1]
        with self._file as file:
            file.flush()
            if os.fstat(file.fileno()).st_size != 4 * count * self._size:
                raise InternalError("the file of captions does not hold what was written")
            vectors: NDArray[np.float32] = (
                np.memmap(file, dtype=np.float32, mode="r", shape=(count, self._size))
                if count
                else np.zeros((0, self._size), dtype=np.float32)
            )
        return Captions(vectors, np.array(self._starts, dtype=np.int64))

    def _write(self, texts: list[str]) -> None:
        vectors = self._describe([*texts, *[""] * (TOGETHER - len(texts))])
        if vectors.shape != (TOGETHER, self._size):
            raise InternalError(f"texts were embedded as {vectors.shape}, one vector a text was expected")
        self._file.write(np.ascontiguousarray(vectors[: len(texts)], dtype=np.float32).tobytes())
