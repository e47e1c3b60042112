"""Whole folders, all or nothing: filled beside their place, renamed into it, marked `DONE` last."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from sfumato._files import fsync_dir, write_atomic
from sfumato.errors import UserError

DONE = "DONE"


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; when the block ends well it becomes `out`, else it is removed.

    It is a hidden sibling of `out`, so the rename is one step and nobody ever sees `out` half filled. What a killed
    process left there is swept by the next attempt. Where a sibling is impossible (`out` is a mount point, or its
    parent may not be written) the folder is `out` itself, and only the marker of `seal` tells a whole from a half.

    Raises:
        UserError: `out` exists and is not an empty folder.
    """
    check_new(out)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and (os.path.ismount(out) or not os.access(out.parent, os.W_OK)):
        try:
            yield out
        except BaseException:
            for item in out.iterdir():
                shutil.rmtree(item) if item.is_dir() else item.unlink()
            raise
        return
    for left in out.parent.glob(f".{glob.escape(out.name)}.????????.partial"):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left)
    stage = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    stage.mkdir()
    try:
        with _locked(stage):
            yield stage
            os.rename(stage, out)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            check_new(out)  # another process was faster
        raise
    fsync_dir(out.parent)


def check_new(out: Path) -> None:
    """Raises UserError if `out` exists and is not an empty folder."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError(f"{out} already exists and nothing is overwritten; give a new or empty folder.")


def seal(folder: Path, mark: str) -> None:
    """Writes the marker `DONE` when everything else in `folder` has reached the disk.

    One sync of the file system instead of one for each of thousands of small images.
    """
    os.sync()
    write_atomic(folder / DONE, mark.encode())


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the kernel lets go when the process dies; OSError if another process holds it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
