"""The parts of a drawing, kept until the release is written, so that a drawing that was cut off goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sfumato._files import writable, write_atomic


class Parts:
    """Parts that are made one after the other, each durable before the next is begun.

    With each part the state of the generator behind it is kept: what follows is drawn as if nothing had happened. All
    of it is post-processing of a finished model.

    Args:
        folder: of this drawing and no other; it and the one around it are made with the first part. None keeps nothing.
        generator: of all randomness that the parts have in common; None where each has its own.
    """

    def __init__(self, folder: Path | None, generator: torch.Generator | None = None) -> None:
        self._folder, self._generator = folder, generator
        self._number, self._kept = 0, folder is not None

    def next(self, count: int, make: Callable[[], Tensor]) -> Tensor:
        """The next part, `count` rows on the processor: as it was kept, or made now.

        A kept part that is broken, or of another length (another version of Sfumato made it), is made anew, with those
        behind it.

        Raises:
            UserError: the folder cannot be written.
        """
        if self._folder is None:
            return make()
        file = self._folder / f"{self._number:06}.safetensors"
        self._number += 1
        found = _read(file) if self._kept else {}
        if found and len(found["part"]) == count:
            if self._generator is not None:
                self._generator.set_state(found["generator"])
            return found["part"]
        self._kept = False
        stored = {"part": make().contiguous()}
        if self._generator is not None:
            stored["generator"] = self._generator.get_state()
        with writable(self._folder):
            for folder in (self._folder.parent, self._folder):
                folder.mkdir(mode=0o700, exist_ok=True)
            write_atomic(file, save(stored), mode=0o600)
        return stored["part"]


def _read(file: Path) -> dict[str, Tensor]:
    """What a file holds; nothing where there is none, or it is broken."""
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return {}
