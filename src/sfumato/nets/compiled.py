"""Compiled kernels of the networks (the C++ sources here): what they can be used for, and how they are called."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato._compiled import load, wanted

TOGETHER = 16
"""Channels come in multiples of this."""

_HERE = Path(__file__).parent


def level() -> int:
    """What compiled code can use here: 0 nothing, 1 AVX2, 2 AVX512, 3 AMX."""
    return min(_best(), wanted())


@functools.cache
def _best() -> int:
    found = load(_HERE)
    return int(found.networks_level()) if found is not None else 0


def fits(x: Tensor, channels: int) -> bool:
    """Whether compiled code is for `x` with so many channels."""
    known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and channels % TOGETHER == 0
    transformed: bool = torch._C._are_functorch_transforms_active()  # vmap hands out tensors without memory
    return known and not transformed and x.numel() > 0 and level() > 0


def by_rows(
    function: str, at_level: int, x: Tensor, before: Sequence[Any], sizes: Sequence[int], after: Sequence[Any]
) -> None:
    """Calls a kernel, on as many threads as PyTorch has, each for a share of the rows of `x`.

    Args:
        function: takes a level, whether numbers are bfloat16, `before`, the number of rows, `sizes`, `after`.
        at_level: as `level` gave it.
        x: its precision decides.
        before, after: tensors, which go as addresses of their rows, and other arguments.
        sizes: integers.
    """
    found, threads = load(_HERE), min(torch.get_num_threads(), len(x))
    assert found is not None

    def address(value: Any, first: int) -> Any:
        return ctypes.c_void_p((value[first:] if first else value).data_ptr()) if isinstance(value, Tensor) else value

    def work(number: int) -> None:
        first, end = (len(x) * n // threads for n in (number, number + 1))
        counts = (ctypes.c_int64(size) for size in (end - first, *sizes))
        arguments = (*(address(value, first) for value in before), *counts, *(address(value, first) for value in after))
        if getattr(found, function)(at_level, int(x.dtype == torch.bfloat16), *arguments):
            raise RuntimeError("the kernels were called on a processor that they do not support")

    if threads == 1:
        work(0)
    else:
        list(_pool(threads).map(work, range(threads)))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has no threads but one
