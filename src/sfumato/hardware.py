"""Where to compute, and in which precision; a matter of speed, never of the guarantee."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from sfumato.errors import UserError

Precision = Literal["fp32", "bf16"]


class Hardware(NamedTuple):
    """A device and the precision of forward and backward passes on it."""

    device: torch.device
    precision: Precision


def choose_hardware(name: str = "auto") -> Hardware:
    """The hardware called `name`: `auto` (a GPU if there is one), `cpu` or `cuda`.

    bfloat16 is chosen where it is faster than float32: on GPUs that have it, and on processors with AVX512-BF16 or AMX.
    Untested on GPU.

    Raises:
        UserError: `cuda` was asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("--device cuda was given, but PyTorch finds no GPU here; use --device cpu or auto.")
    if name != "cpu" and has_gpu:
        return Hardware(torch.device("cuda"), "bf16" if torch.cuda.is_bf16_supported() else "fp32")
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    return Hardware(torch.device("cpu"), "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32")


def keep_freed_memory() -> None:
    """Asks the C library to keep what is freed; without it, fresh pages are a quarter of a training step.

    Sets glibc's M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD; does nothing on other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):
            mallopt(parameter, value)
