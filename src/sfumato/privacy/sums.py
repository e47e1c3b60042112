"""Touch 2: a noisy sum. Clipped vectors on a fine integer grid, summed exactly, with discrete Gaussian noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import InternalError
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import SumTouch
from sfumato.privacy.records import PrivateRecords, Rows

Vectors = Callable[[Rows], tuple[Tensor, Tensor]]
GRID = 2**16
"""Grid steps per clip norm: whole numbers up to it are exact in float32, and sums of 10^14 records fit 64 bits."""
CHUNK = 64
_UNIT = 2.0**-24  # unit roundoff of float32


def grid_sum(
    records: PrivateRecords, touch: SumTouch, attempt: int, vectors: Vectors, shape: tuple[int, int]
) -> NDArray[np.int64]:
    """The un-noised sum in grid steps, int64 `shape`. Private: for `noisy_sum` and the sensitivity tests."""
    blocks, length = shape
    total = torch.zeros(shape, dtype=torch.int64)
    everyone = np.arange(records._size())
    for rows, _ in records._chunks(everyone, CHUNK, 1, touch.name, attempt):
        with torch.inference_mode():
            block, vector = vectors(rows)
        if vector.shape != (len(rows.present), length) or block.shape != vector.shape[:1]:
            raise InternalError(f"a noisy sum needs one block and one vector of length {length} per record")
        vector = vector.float()
        # A float32 norm of n numbers is off by at most n + 2 units of roundoff, and a product by one: raised by more
        # than that, it keeps the scaled vector inside the ball. Truncation toward zero keeps the grid point there too.
        norm = vector.norm(dim=1) * (1 + 1.01 * (length + 8) * _UNIT)
        usable = rows.present & norm.isfinite() & (block >= 0) & (block < blocks)
        vector = torch.where(usable[:, None], vector, 0.0)
        scale = (1 - 4 * _UNIT) * GRID / norm.where(usable, 0.0).clamp(min=touch.clip_norm)
        steps = vector.mul_(scale[:, None]).trunc_()
        total.index_add_(0, torch.where(usable, block, 0).cpu(), steps.long().cpu())
    result: NDArray[np.int64] = total.numpy()
    return result


def noisy_sum(
    records: PrivateRecords, touch: SumTouch, attempt: int, vectors: Vectors, shape: tuple[int, int], noise: Noise
) -> NDArray[np.float64]:
    """Sums one clipped vector per record and adds discrete Gaussian noise to every coordinate of every block.

    Args:
        records: the private records.
        touch: its plan: `clip_norm` and `noise_multiplier`.
        attempt: which of the planned attempts this is; part of the key of per-record randomness.
        vectors: per-record function from a chunk of R records (one image each) to the block that each belongs to,
            int64 `(R,)`, and its vector, floats `(R, length)`. What a record adds is the concatenation of all blocks,
            zero but in its own, so blocks (one per class, say) are released together under one bound.
        shape: (blocks, length), public.
        noise: where the noise comes from.

    Returns:
        float64 `(blocks, length)`: the noisy sum in the units of `vectors`.

    Raises:
        InternalError: the function returned other shapes.

    Guarantee:
        Adding or removing one record moves the un-noised integer sum by at most `GRID` steps in Euclidean norm. Sums
        are exact; noise is an exact discrete Gaussian of scale `noise_multiplier GRID`. A vector that is not finite,
        a block that does not exist, and a null contribution add zero.

    Does not cover:
        A function in which the vector of one record depends on another; it must treat rows one by one.
    """
    total = grid_sum(records, touch, attempt, vectors, shape)
    noise_steps = noise.discrete_gaussian(total.size, touch.noise_multiplier * GRID).reshape(shape)
    noisy: NDArray[np.float64] = (total + noise_steps).astype(np.float64) * (touch.clip_norm / GRID)
    return noisy
