"""Pulled models on disk: a folder each, with the files, and `model.json` that says what they should be."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sfumato._files import sha256_file, write_atomic, write_json
from sfumato._home import home
from sfumato.errors import UserError
from sfumato.pretrained.interfaces import Identity

RECORD = "model.json"
LAYOUT = 1
"""Grows when the files that we write for the same archives change."""


def folder_of(name: str) -> Path:
    """Where a model is or will be: `models/NAME` in the user's state folder."""
    return home() / "models" / name


def install(name: str, identity: Identity, files: Mapping[str, bytes]) -> Path:
    """Writes a model's files. `model.json` comes last, so a killed pull is no model, and two at once agree.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = folder_of(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)
        for file, data in files.items():
            write_atomic(folder / file, data)
        sums = {file: {"bytes": len(data), "sha256": sha256_file(folder / file)} for file, data in files.items()}
        write_json(folder / RECORD, {"layout": LAYOUT, "identity": identity.to_json(), "files": sums})
    except OSError as error:
        raise UserError(
            f"The model {name} cannot be written to {folder} ({error.strerror}): make room, or set SFUMATO_HOME to a "
            f"folder that you may write."
        ) from error
    return folder


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Waits until no other process is bringing this model.

    Raises:
        UserError: the folder cannot be written.
    """
    file = folder_of(name).parent / f".{name}.lock"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise UserError(
            f"Models cannot be kept in {file.parent} ({error.strerror}): make room, or set SFUMATO_HOME to a folder "
            "that you may write."
        ) from error
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_installed(name: str, identity: Identity) -> bool:
    """Whether the model was pulled, in the version that this Sfumato knows; its files are not read."""
    return _record(name, identity) is not None


def checked(name: str, identity: Identity) -> Path:
    """The folder of a pulled model whose files are all there and intact.

    Raises:
        UserError: it was not pulled, in this version, or a file is missing or has changed since.
    """
    record = _record(name, identity)
    if record is None:
        raise UserError(f"The model {name} is not on this machine; run: sfumato models pull {name}")
    folder = folder_of(name)
    for file, facts in record.items():
        try:
            intact = sha256_file(folder / file) == facts
        except OSError:
            intact = False
        if not intact:
            raise UserError(
                f"{folder / file} is missing or has changed since it was pulled; run: sfumato models pull {name}"
            )
    return folder


def _record(name: str, identity: Identity) -> dict[str, str] | None:
    """SHA-256 of each file as recorded, or None where the record is not of this model in this version."""
    try:
        record = json.loads((folder_of(name) / RECORD).read_text())
        if record["layout"] != LAYOUT or record["identity"] != identity.to_json():
            return None
        return {str(file): str(facts["sha256"]) for file, facts in record["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
