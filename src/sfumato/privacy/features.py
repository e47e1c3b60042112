"""What a public embedder makes of every record, computed once a run and kept in its private folder.

Rounds of votes ask the same question of the same records against other candidates. Embedding the records anew each time
would change nothing but the time it takes. A record is embedded from one of its images, chosen once (a fixed choice
bounds what one record does as well as a fresh one).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato._files import fsync_dir
from sfumato.errors import InternalError, PrivacyRefusal
from sfumato.privacy.records import PrivateRecords, Rows

Embedding = Callable[[Rows], Tensor]
CHUNK = 256
VOTING_CHUNK = 4096


class Voters(NamedTuple):
    """A chunk of embedded records as a per-record function sees it.

    Attributes:
        features: float32 `(R, D)`; zeros where a record contributes nothing.
        labels: int64 `(R,)`, index into the declared classes, or -1.
        present: bool `(R,)`, as in `Rows`.
    """

    features: Tensor
    labels: Tensor
    present: Tensor


class Features:
    """Embedded records, for touches only: no item, length, order or count outside `sfumato.privacy`.

    Guarantee:
        A record's features are what the embedder made of its one chosen image, in a chunk of constant shape. The choice
        depends on the record and the run's key alone. `progress` hears of whole chunks only.

    Does not cover:
        An embedder whose rows depend on each other; other processes of the same user, who can read the run folder.
    """

    def __init__(
        self,
        records: PrivateRecords,
        name: str,
        embed: Embedding,
        dimensions: int,
        folder: Path,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Embeds all records, unless an interrupted run had done so.

        Args:
            records: the records of one run, unchanged since that run began.
            name: of the embedding within the run; another embedder has another name.
            embed: per-record function, public: R records (one image each) to float `(R, dimensions)`.
            dimensions: length of an embedding.
            folder: private folder of the run.
            progress: told how many records are behind, in whole chunks: never the number of all.

        Raises:
            InternalError: the function returned anything else.
        """
        self._records = records
        everyone, stage = np.arange(records._size()), f"features {name}"
        file = folder / f"{name}.features"
        values = _opened(file, (len(everyone), dimensions))
        unfinished = folder / f"{name}.features.tmp"
        if values is None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            unfinished.unlink(missing_ok=True)
            unfinished.touch(mode=0o600)
        into = values if values is not None else _mapped(unfinished, (len(everyone), dimensions))
        labels, present = np.full(len(everyone), -1, dtype=np.int64), np.zeros(len(everyone), dtype=np.bool_)
        for rows, part in records._chunks(everyone, CHUNK, 1, stage, 0):
            labels[part], present[part] = rows.labels[: len(part)].numpy(), rows.present[: len(part)].numpy()
            if values is None:
                with torch.inference_mode():
                    found = embed(rows)
                if found.shape != (CHUNK, dimensions) or not found.dtype.is_floating_point:
                    raise InternalError(f"an embedding must be float numbers of shape (records, {dimensions})")
                into[part] = torch.where(rows.present[:, None], found.float(), 0.0)[: len(part)].numpy()
                if len(part) == CHUNK:  # the last chunk would tell how many records there are
                    progress(int(part[-1]) + 1)
        if values is None:
            if isinstance(into, np.memmap):
                into.flush()
            os.replace(unfinished, file)
            fsync_dir(folder)
        self._values, self._labels, self._present = into, labels, present

    def __repr__(self) -> str:
        return "Features()"

    def __reduce__(self) -> str:
        raise PrivacyRefusal("Private features are not pickled or copied to other processes.")

    def _of(self, records: PrivateRecords) -> bool:
        return records is self._records

    def _chunks(self) -> Iterator[Voters]:
        """All records, in chunks of one constant shape."""
        for begin in range(0, len(self._values), VOTING_CHUNK):
            part = slice(begin, begin + VOTING_CHUNK)
            count = len(self._labels[part])
            features = torch.zeros(VOTING_CHUNK, self._values.shape[1])
            labels = torch.full((VOTING_CHUNK,), -1)
            present = torch.zeros(VOTING_CHUNK, dtype=torch.bool)
            features[:count] = torch.from_numpy(np.array(self._values[part]))
            labels[:count] = torch.from_numpy(self._labels[part])
            present[:count] = torch.from_numpy(self._present[part])
            yield Voters(features, labels, present)


def _mapped(file: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.memmap(file, dtype=np.float32, mode="r+", shape=shape) if shape[0] else np.zeros(shape, dtype=np.float32)


def _opened(file: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The features of an interrupted run, if it had finished them."""
    if not file.exists() or file.stat().st_size != 4 * shape[0] * shape[1]:
        return None
    return _mapped(file, shape)
