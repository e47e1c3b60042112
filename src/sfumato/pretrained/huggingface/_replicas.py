"""One copy of a model on each device, and batches of constant size dealt out to them.

What a private record contributes must not depend on its neighbours. So a batch always has the same number of items,
filled up with copies of its last one; the same kernels run on every item, whatever stands beside it, and the n-th
batch is the same for one device or many. On a CPU results are then the same to the bit, as the tests check. On GPUs
this rests on their libraries computing each row of a batch alike: untested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from sfumato.errors import UserError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

M = TypeVar("M")
I = TypeVar("I")  # noqa: E741 - an item
R = TypeVar("R")


def chosen_devices(devices: str | Sequence[str]) -> list[torch.device]:
    """`auto` is every GPU, or the CPU; else one name (`cuda:1`) or several.

    Raises:
        UserError: there is no such device here.
    """
    if devices == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return [torch.device("cuda", number) for number in range(gpus)] or [torch.device("cpu")]
    names = [devices] if isinstance(devices, str) else list(devices)
    if not names:
        raise UserError("No device was given; give auto, cpu, cuda:0, or a list of them.")
    found = []
    for name in names:
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"There is no device {name!r} here; give auto, cpu, cuda:0, or a list of them.") from error
        found.append(device)
    return found


def chosen_precision(precision: str, devices: Sequence[torch.device], on_gpu: str) -> torch.dtype:
    """`auto` is float32 on a CPU and `on_gpu` on GPUs; bfloat16 gives way to float16 where a GPU lacks it.

    Raises:
        UserError: no such precision.
    """
    if precision == "auto":
        if all(device.type == "cpu" for device in devices):
            return torch.float32
        lacking = on_gpu == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported()
        return PRECISIONS["fp16" if lacking else on_gpu]
    if precision not in PRECISIONS:
        raise UserError(f"There is no precision {precision!r}; give auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[precision]


class Replicas(Generic[M]):
    """Copies of a model.

    Args:
        build: makes the copy for a device.
        devices: one or more; the same twice makes two copies.
        batch: items a call.
    """

    def __init__(self, build: Callable[[torch.device], M], devices: Sequence[torch.device], batch: int) -> None:
        if batch < 1:
            raise UserError(f"A batch of {batch} was given; give at least 1.")
        self.batch = batch
        self.copies = [(build(device), device) for device in devices]
        self._free: SimpleQueue[tuple[M, torch.device]] = SimpleQueue()
        for copy in self.copies:
            self._free.put(copy)

    def map(self, work: Callable[[M, torch.device, list[I]], Sequence[R]], items: Sequence[I]) -> list[R]:
        """Applies `work(model, device, batch)`, which gives one result an item; results in the order of the items.

        Raises:
            UserError: a device has too little memory.
        """
        batches = [list(items[start : start + self.batch]) for start in range(0, len(items), self.batch)]

        def run(batch: list[I]) -> list[R]:
            copy = self._free.get()
            try:
                with torch.inference_mode():
                    results = work(*copy, batch + batch[-1:] * (self.batch - len(batch)))
                return list(results)[: len(batch)]
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{copy[1]} has too little memory for batches of {self.batch}; give a smaller batch."
                ) from error
            finally:
                self._free.put(copy)

        with ThreadPoolExecutor(len(self.copies)) as pool:
            return [result for results in pool.map(run, batches) for result in results]


def on_device(inputs: Any, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A library's batch of tensors on a device, with floating-point values of one type."""
    return {
        key: value.to(device, dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }


def buckets(lengths: Sequence[int], longest: int, shortest: int = 16) -> dict[int, list[int]]:
    """Items by the length they are padded to: a power of two, or `longest`, that their own length decides."""
    found: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        padded = shortest
        while padded < length:
            padded *= 2
        found.setdefault(min(padded, longest), []).append(number)
    return found
