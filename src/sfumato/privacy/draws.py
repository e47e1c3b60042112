"""Randomness used on a record, as a keyed function of the touch, the step and that record's own identity.

Were records to draw from one stream, removing a record would shift the draws of all behind it, and with them every
contribution: one person among a thousand moved a vote by 37 instead of 1. Here a record's draws stay what they are
whoever else is in the folder. The key may be kept (resuming needs it); it hides nothing that protects a record.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_WORD = 2.0**-32


class Draws:
    """Random values for a chunk of records; the value of a record does not depend on the others in the chunk.

    Guarantee:
        A draw is a function of (key, touch, step, name, record identity) alone, through SHAKE-128.

    Does not cover:
        The noise that protects records, which comes from `Noise` only.
    """

    def __init__(self, key: bytes, touch: str, step: int, identities: Sequence[bytes]) -> None:
        """
        Args:
            key: 32 bytes of one run.
            touch: name of the touch.
            step: attempt or step within it.
            identities: 16 bytes per record, in the order of the chunk.
        """
        self._prefix = key + hashlib.sha256(touch.encode()).digest() + step.to_bytes(8, "big")
        self._identities = identities

    def _words(self, name: str, count: int) -> Tensor:
        """`(R, count)` uniform 32-bit words as float64."""
        prefix = self._prefix + hashlib.sha256(name.encode()).digest()
        data = b"".join(hashlib.shake_128(prefix + identity).digest(4 * count) for identity in self._identities)
        return torch.from_numpy(np.frombuffer(data, dtype=np.uint32).reshape(-1, count).astype(np.float64))

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform draws in (0, 1), float32 `(R, *shape)`."""
        return ((self._words(name, math.prod(shape)) + 0.5) * _WORD).view(-1, *shape).float()

    def integers(self, name: str, bounds: Tensor) -> Tensor:
        """One integer per record, uniform in `[0, bounds)` up to 2^-32; `bounds` is int64 `(R,)`, int64 out."""
        return (self._words(name, 1)[:, 0] * _WORD * bounds).long()

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal draws, float32 `(R, *shape)`, by Box and Muller's transform."""
        count = math.prod(shape)
        half = -(-count // 2)
        words = self._words(name, 2 * half)
        radius = (-2 * ((words[:, :half] + 1) * _WORD).log()).sqrt()
        angle = words[:, half:] * (2 * math.pi * _WORD)
        return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)[:, :count].reshape(-1, *shape).float()
