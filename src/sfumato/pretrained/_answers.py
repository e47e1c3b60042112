"""Answers of model servers on disk, so that a resumed run pays nothing twice.

A file an answer, named by the SHA-256 of its request, written durably before the answer is used. The first line is
JSON: the hash of what follows, and what it cost. Folders have mode 0700: requests are not kept, but answers to private
images are private.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from sfumato._files import write_atomic
from sfumato.errors import UserError


@dataclass(frozen=True)
class Answer:
    """What was taken from a response, and its price at that time."""

    payload: bytes
    cost: float


class Answers:
    """A folder of answers; processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Makes the folder, before anything is paid.

        Raises:
            UserError: it cannot be made.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as error:
            raise UserError(
                f"Answers cannot be kept in {self.folder} ({error.strerror}); name another folder."
            ) from error

    def get(self, key: str) -> Answer | None:
        """The answer, or None where there is none or its file is damaged."""
        try:
            head, _, payload = self._file(key).read_bytes().partition(b"\n")
            facts = json.loads(head)
            if facts["sha256"] != hashlib.sha256(payload).hexdigest():
                return None
            return Answer(payload, float(facts["cost"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, answer: Answer) -> None:
        """Keeps an answer; it is on disk when this returns.

        Raises:
            UserError: the disk is full or may not be written.
        """
        head = json.dumps({"sha256": hashlib.sha256(answer.payload).hexdigest(), "cost": answer.cost})
        file = self._file(key)
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(file, head.encode() + b"\n" + answer.payload, mode=0o600)
        except OSError as error:
            raise UserError(f"An answer cannot be kept in {self.folder} ({error.strerror}); make room.") from error

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / key
