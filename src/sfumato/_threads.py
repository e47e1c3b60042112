"""Threads that compute side by side, each on one core."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


@contextlib.contextmanager
def one_core_each() -> Iterator[ThreadPoolExecutor]:
    """As many threads as PyTorch has, each of which computes on one core.

    For many products this beats all cores on every product: somewhat on an idle machine, and by far beside other
    programs, where every product waits for the slowest core. While one thread does something else, such as compare, the
    others have the units for themselves that cores may share.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
