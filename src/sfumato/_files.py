"""Durable files: every artefact is written to a temporary file, synced, renamed, and its folder synced."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfumato.errors import UserError


def fsync_dir(folder: Path) -> None:
    """Makes a rename or a removal inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes `data` to `path` so that a reader sees the old file or the whole new one, whatever happens meanwhile.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file is then untouched.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    fsync_dir(path.parent)


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Writes `value` as indented JSON with a final newline; NaN and infinity are refused (ValueError)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode(), mode)


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write there into one sentence (UserError)."""
    try:
        yield
    except (ConnectionError, TimeoutError):  # of a model on a server, not of the folder
        raise
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({os.strerror(error.errno) if error.errno else error}); nothing that was "
            "spent is lost: make room or mend the permissions, then resume."
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
