"""An append-only file of JSON lines that several processes may write, that survives kills, and that shows tampering.

Each line is one compact JSON object ending in `"prev":P,"hash":H`: P is the hash of the line before (64 zeros for the
first), H the SHA-256 of the line without `,"hash":H`. A line therefore commits to every byte before it, and a quoted
(line number, hash) pins the whole file up to there. The file knows nothing of budgets; what the lines mean is kept in
a *state* object, which sees each line once, in order, and refuses those that break its rules.

The file is opened and locked (`flock`) anew for every access, so no lock is held between two of them; and what is
already understood is not read again, so an append costs the same for line ten and line ten thousand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from sfumato._files import fsync_dir
from sfumato.errors import PrivacyRefusal, SfumatoError, UserError

Entry = dict[str, Any]
GENESIS = "0" * 64
_SEAL = b',"hash":"'


class State(Protocol):
    """What the lines mean. `apply` raises a `SfumatoError` on a line that may not stand.

    *Guarantee:* what `apply` took in without raising is what the lines say. *Does not cover:* use after it raised.
    """

    def apply(self, entry: Entry) -> None: ...


S = TypeVar("S", bound=State)


class Chain(Generic[S]):
    """The file at `path`, read up to where this process last looked, and the state its lines add up to.

    Args:
        path: the file; it and its folder (mode 0600 and 0700) appear with the first line.
        start: makes the state of an empty file.
        quoted: (line number, hash) that the file must contain, as quoted elsewhere earlier.

    *Guarantee:* a line whose write returned is on disk; a write that raised left no line, or says that it may have. No
    two writers, in any process or thread, see the same state and both write. A file that no longer contains what this
    object has seen, or `quoted`, is refused.

    *Does not cover:* somebody who rewrites the file with all hashes recomputed, where no hash was quoted before; an
    edit in place of lines that this object has already read (the next object to open the file finds it).
    """

    def __init__(self, path: Path, start: Callable[[], S], quoted: tuple[int, str] | None = None) -> None:
        self.path = path
        self._start = start
        self._known = quoted
        self._mutex = threading.Lock()
        self._forget()

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the last line; (-1, 64 zeros) if there is none."""
        return self._count - 1, self._hash

    @contextlib.contextmanager
    def reading(self) -> Iterator[S]:
        """The state after every line written so far; it must not be used after the block.

        Raises:
            PrivacyRefusal: the chain is broken, or lines that were known are gone.
            UserError: the file cannot be read.
        """
        if self._known is None and _is_missing(self.path):
            yield self._start()
            return
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as handle:
            self._catch_up(handle)
            yield self.state

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[..., None]]:
        """A function `write(kind, **fields)`; what it was given becomes durable, all or nothing, as the block ends.

        Between the beginning of the block and its end nobody else writes, so what `state` says stays true. If the
        block raises, nothing is written.

        Raises:
            PrivacyRefusal: as in `reading`, or from the state.
            UserError: the file cannot be written; it is then as it was, or the message says that it may not be.
        """
        if self._known is None:
            make_private_folder(self.path.parent)
        with self._locked(os.O_RDWR | os.O_CREAT | os.O_APPEND, fcntl.LOCK_EX) as handle:
            self._catch_up(handle)
            start = self._offset
            pending: list[bytes] = []

            def write(kind: str, **fields: Any) -> None:
                now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                line = _seal({"n": self._count, "time": now, "kind": kind, **fields, "prev": self._hash})
                self._take(line)  # the writer passes the reader's checks, so that what is written can be read
                pending.append(line + b"\n")

            yield write
            if pending:
                self._append(handle, b"".join(pending), start)
                self._known = self.head

    def _forget(self) -> None:
        self.state = self._start()
        self.torn = False
        self._count, self._hash, self._offset = 0, GENESIS, 0
        self._identity: tuple[int, int] | None = None

    @contextlib.contextmanager
    def _locked(self, flags: int, lock: int) -> Iterator[int]:
        with self._mutex, contextlib.ExitStack() as stack:
            try:
                handle = os.open(self.path, flags, 0o600)
                stack.callback(_unlock_and_close, handle)
                fcntl.flock(handle, lock)
            except OSError as fault:
                raise UserError(f"The ledger {self.path} cannot be opened and locked ({fault.strerror}).") from fault
            try:
                yield handle
            except BaseException:
                self._forget()  # the state may be ahead of the file: understand it anew next time
                raise

    def _catch_up(self, handle: int) -> None:
        status = os.fstat(handle)
        identity = (status.st_dev, status.st_ino)
        if identity != self._identity or status.st_size < self._offset:
            self._forget()
            self._identity = identity
        if status.st_size > self._offset:
            try:
                with open(handle, "rb", buffering=0, closefd=False) as file:
                    file.seek(self._offset)
                    *lines, rest = file.readall().split(b"\n")
            except OSError as fault:
                raise UserError(f"The ledger {self.path} cannot be read ({fault.strerror}).") from fault
            for line in lines:
                try:
                    self._take(line)
                except SfumatoError as refusal:
                    raise type(refusal)(f"Line {self._count} of the ledger {self.path}: {refusal}") from refusal
            self.torn = bool(rest)
        if self._known is not None and self._known[0] >= self._count:
            raise PrivacyRefusal(
                f"The ledger {self.path} has {self._count} lines, but line {self._known[0]} was seen or quoted before: "
                "lines were removed, or it is not the same ledger. Put the right file back."
            )
        if self._count:
            self._known = self.head

    def _take(self, line: bytes) -> None:
        """Checks one line (without its newline) against the chain, hands it to the state, and moves on."""
        entry = _unseal(line)
        if entry.get("n") != self._count or entry.get("prev") != self._hash:
            raise PrivacyRefusal("it does not follow the line before it: a line was removed, inserted or moved.")
        if self._known is not None and self._known[0] == self._count and self._known[1] != entry["hash"]:
            raise PrivacyRefusal("it is not the line seen or quoted before: it, or one before it, was changed.")
        self.state.apply(entry)
        self._count, self._hash, self._offset = self._count + 1, entry["hash"], self._offset + len(line) + 1

    def _append(self, handle: int, data: bytes, start: int) -> None:
        try:
            if self.torn:  # the end of an append that never returned, so nothing was done upon it
                os.ftruncate(handle, start)
                self.torn = False
            if os.write(handle, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
            if start == 0:
                fsync_dir(self.path.parent)
        except BaseException as fault:
            reason = fault.strerror if isinstance(fault, OSError) else type(fault).__name__
            try:
                os.ftruncate(handle, start)
                os.fsync(handle)
            except OSError as second:
                raise UserError(
                    f"The ledger {self.path} could be neither written ({reason}) nor put back ({second.strerror}): its "
                    "last line may count although nothing was done upon it. Mend the disk, then resume."
                ) from fault
            if isinstance(fault, OSError):
                raise UserError(
                    f"The ledger {self.path} could not be written ({reason}), so nothing was recorded and no private "
                    "data was touched. Make room on that disk, then resume."
                ) from fault
            raise


def _seal(body: Entry) -> bytes:
    text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    return text[:-1] + _SEAL + hashlib.sha256(text).hexdigest().encode() + b'"}'


def _unseal(line: bytes) -> Entry:
    """The entry in `line`, if its hash is that of its very bytes (not of what they parse to)."""
    text, _, seal = line.rpartition(_SEAL)
    if seal != hashlib.sha256(text + b"}").hexdigest().encode() + b'"}':
        raise PrivacyRefusal("its content does not match its hash: it was changed, or the disk is damaged.")
    try:
        entry: Entry = json.loads(line)
    except ValueError:
        raise PrivacyRefusal("it is not JSON.") from None
    return entry


def _unlock_and_close(handle: int) -> None:
    # Closing alone would not do: a child that another thread forked meanwhile has a copy of the handle, and the lock.
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:  # opening it will say what is wrong
        pass
    return False


def make_private_folder(folder: Path) -> None:
    """Makes `folder` and its missing parents, all with mode 0700.

    *Guarantee:* they survive a power cut. *Does not cover:* the mode of folders that existed.
    """
    if not folder.is_dir():
        make_private_folder(folder.parent)
        try:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            fsync_dir(folder.parent)
        except OSError as fault:
            raise UserError(f"The folder {folder} for ledgers cannot be made ({fault.strerror}).") from fault
