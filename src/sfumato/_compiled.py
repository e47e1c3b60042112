"""Libraries of plain C functions, compiled beside the code that calls them where there was a compiler (hatch_build.py).

Sfumato is complete without them, and slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from pathlib import Path

LEVELS = ("off", "avx2", "avx512", "amx")
"""Values of the environment variable SFUMATO_KERNELS, which lowers what the processor offers."""


def wanted() -> int:
    """The place in `LEVELS` of what the environment allows; 0 for anything unknown."""
    value = os.environ.get("SFUMATO_KERNELS", LEVELS[-1])
    return LEVELS.index(value) if value in LEVELS else 0


@functools.cache
def load(folder: Path) -> ctypes.CDLL | None:
    """The library in `folder`; None where there is none, or one of other sources than lie there now."""
    try:
        found = ctypes.CDLL(str(folder / "_kernels.so"))
        found.sources.restype = ctypes.c_char_p
    except (OSError, AttributeError):  # AttributeError: an older library without `sources`
        return None
    return found if found.sources().decode() == digest(folder) else None


def digest(folder: Path) -> str:
    """SHA-256 of the C++ sources in `folder`, which a library built from them knows (hatch_build.py)."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.?pp")))).hexdigest()
