"""The double-precision sum that engines add to, layer by layer, perhaps from several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from sfumato.privacy.gradients.contributions import Places


class Total:
    """One sum for a model or for several copies of it.

    A layer's part is zeroed when something is first added to it, where it can be by whoever adds, in the same pass over
    memory: for a large network each pass over its sum is a good part of a step.

    Guarantee:
        One thread at a time adds to a layer's part. Threads may add in any order; in double precision that moves the
        sum by less than `rounding_slack` covers.

    Does not cover:
        Reading `vector` while a thread still adds.
    """

    def __init__(self, places: Mapping[str, Places], length: int, device: torch.device) -> None:
        self._places = places
        self._vector = torch.zeros(length, dtype=torch.float64, device=device)
        self._turns = {name: threading.Lock() for name in places}
        self._stale: set[str] = set()

    def reset(self) -> None:
        """Starts anew at zero."""
        self._stale = set(self._places)

    @contextmanager
    def turn(self, name: str, overwrites: bool = False) -> Iterator[tuple[Tensor, bool]]:
        """Lends the vector for adding to one layer's part; the flag says that the part must be overwritten.

        It is False, and old values are zeroed here, for whoever cannot overwrite.
        """
        with self._turns[name]:
            stale = name in self._stale
            if stale and not overwrites:
                self._vector[self._places[name].whole] = 0
            yield self._vector, stale and overwrites
            self._stale.discard(name)

    @property
    def vector(self) -> Tensor:
        """The sum, float64 `(parameters,)`; the same memory every time."""
        for name in self._stale:
            self._vector[self._places[name].whole] = 0
        self._stale = set()
        return self._vector
