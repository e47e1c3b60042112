"""Where every random bit that protects a record comes from.

There is one source, the kernel's cryptographic generator. Nothing here can be seeded, and nothing is kept: a fork, a
restored snapshot of a Python process or a second run draws other noise. (`torch.Generator` would not do: the CPU's
keeps 32 bits of its seed, so "seeded by the system" would mean 2^32 possible noise streams.)
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import InternalError, UserError

_SECURE_SUMMANDS = 4
_AT_ONCE = 2**16  # normal draws of a thread: for two million parameters there is work for many


class Noise:
    """Masks and noise for the touches.

    Guarantee:
        All bits come from `os.urandom`. Discrete Gaussian draws are exact (OpenDP; Canonne, Kamath and Steinke 2020).
        Poisson inclusion has probability `floor(q 2^64) / 2^64`, never more than q. Continuous draws are sums of four
        (Holohan and Braghin 2021), so that the floating-point grid of a single draw cannot be recognised.

    Does not cover:
        How long a draw takes; the distance between a double-precision normal and a real one.
    """

    private = True

    def bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes."""
        return os.urandom(count)

    def poisson_mask(self, count: int, rate: float) -> NDArray[np.bool_]:
        """Includes each of `count` records independently with probability `rate` (0 < rate <= 1)."""
        if not 0 < rate <= 1:
            raise UserError(f"A sampling rate lies in (0, 1]; got {rate}.")
        threshold = int(rate * 2**64)
        if threshold >= 2**64:
            return np.ones(count, dtype=np.bool_)
        return np.frombuffer(self.bytes(8 * count), dtype=np.uint64) < np.uint64(threshold)

    def gaussian(self, count: int, standard_deviation: float) -> NDArray[np.float64]:
        """`count` normal draws, each the sum of four independent ones divided by two; drawn by several threads."""
        draws = np.full(count, np.nan)  # what no thread reached would be seen

        def fill(begin: int) -> None:
            part = draws[begin : begin + _AT_ONCE]
            part[:] = 0
            for _ in range(_SECURE_SUMMANDS):
                part += normals(self.bytes(16 * (-(-len(part) // 2))))[: len(part)]
            part *= standard_deviation / np.sqrt(_SECURE_SUMMANDS)

        with ThreadPoolExecutor() as threads:
            list(threads.map(fill, range(0, count, _AT_ONCE)))  # raises what a thread raised
        return draws

    def discrete_gaussian(self, count: int, scale: float) -> NDArray[np.int64]:
        """`count` exact draws from the discrete Gaussian on the integers: P(x) ~ exp(-x^2 / 2 scale^2)."""
        if not (np.isfinite(scale) and scale > 0):
            raise InternalError("the scale of a discrete Gaussian must be positive and finite")
        import opendp.prelude as dp

        dp.enable_features("contrib")
        space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
        return np.asarray(dp.m.make_gaussian(*space, scale=scale)(np.zeros(count, dtype=np.int64)), dtype=np.int64)


class TestNoise(Noise):
    """Predictable masks and no noise at all, for tests that compare neighbouring folders. NOT PRIVATE.

    A run that uses it is marked NOT PRIVATE in its ledger and its weights, and cannot be released.

    Guarantee:
        None.

    Does not cover:
        Anything.
    """

    __test__ = False  # not a pytest class
    private = False

    def __init__(self, key: bytes = b"") -> None:
        self._key, self._calls = key, 0

    def bytes(self, count: int) -> bytes:
        """The next bytes of a stream that `key` decides."""
        self._calls += 1
        return hashlib.shake_128(self._key + self._calls.to_bytes(8, "big")).digest(count)

    def gaussian(self, count: int, standard_deviation: float) -> NDArray[np.float64]:
        """Zeros."""
        return np.zeros(count)

    def discrete_gaussian(self, count: int, scale: float) -> NDArray[np.int64]:
        """Zeros."""
        return np.zeros(count, dtype=np.int64)


def normals(data: bytes) -> NDArray[np.float64]:
    """Standard normal draws from uniform bytes, one per eight bytes, by Box and Muller's transform.

    Args:
        data: a multiple of 16 uniform bytes; 53 bits of each eight are used, so draws reach 8.57 standard deviations.
    """
    bits = np.frombuffer(data, dtype=np.uint64) >> np.uint64(11)
    first, second = bits.reshape(2, -1)
    radius = np.sqrt(-2 * np.log((first + 1.0) * 2.0**-53))
    angle = second * (2 * np.pi * 2.0**-53)
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
