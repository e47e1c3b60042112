"""Decoding in processes that may hang, crash or run out of memory without harm to the run."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

import sfumato
from sfumato.data.decode import DIGEST_SIZE, MAX_NAME, Decoded, ImageSpec, Unreadable, decode_file, is_integer, nothing
from sfumato.errors import InternalError, UserError

READY = b"\x00"  # the first byte a worker says
FAULTS = tuple(Unreadable)  # a reply is 0, digest, pixels; or one byte, 1 + index of the fault
CHUNK_FILES, CHUNK_PIXELS, CHUNK_NAMES = 32, 2**22, 2**13  # bounds of a chunk: files, bytes of pixels, bytes of names
CHUNKS_A_WORKER = 2  # asked ahead: their names always fit into the request pipe, so asking never blocks
START_TIMEOUT = 60.0  # seconds, for the imports on a busy machine


@dataclasses.dataclass(slots=True, repr=False, eq=False)
class _Chunk:
    """Consecutive files: `names` still to be answered for, `results` so far, and how often the first name failed."""

    names: deque[bytes]
    results: list[Decoded] = dataclasses.field(default_factory=list)
    strikes: int = 0

    def answer(self, decoded: Decoded) -> None:
        self.names.popleft()
        self.results.append(decoded)
        self.strikes = 0


class _Worker:
    """The parent's end of one process. `silence` is how long the parent has been waiting for its next reply."""

    def __init__(self, greeting: bytes) -> None:
        self.chunks: deque[_Chunk] = deque()
        self.replies = bytearray()
        self.ready = False
        self.silence = 0.0
        # -P: a file called PIL.py in the current folder, which may be the private one, must never be imported.
        command = [sys.executable, "-P", "-m", "sfumato.data._decode_worker"]
        path = [str(Path(sfumato.__file__).parent.parent), *filter(None, sys.path)]
        # One BLAS thread: the others would fill the worker's address space with buffers it never uses.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OPENBLAS_NUM_THREADS": "1"}
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=null, env=environment)
        self.output = cast(IO[bytes], self.process.stdout)
        self._send(greeting)

    def ask(self, chunk: _Chunk) -> None:
        """Asks for everything in `chunk` that has no answer yet: a count, then each name after its length."""
        names = [len(name).to_bytes(2, "big") + name for name in chunk.names]
        self._send(len(names).to_bytes(2, "big") + b"".join(names))

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died: its silence on the other pipe will tell
            cast(IO[bytes], self.process.stdin).write(message)

    def stop(self) -> None:
        """Kills the process, which has nothing to save."""
        self.process.kill()
        cast(IO[bytes], self.process.stdin).close()
        self.output.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel, on a dead network disk
            self.process.wait(timeout=5)


class DecodePool:
    """Decodes files in worker processes that may be killed, and yields the results in the order asked for.

    A worker that hangs or dies is replaced, and the file it was at gets one fresh worker, because what an earlier file
    did to a process must not decide about this one. If it fails again it is `timed_out` or `crashed`. Workers are
    plain subprocesses (safe beside threads, no re-import of `__main__`) that speak bytes over pipes, never pickle; they
    print nothing, leave no core dump, and end by themselves if this process dies.

    Args:
        root: existing folder of the files.
        spec: target shape.
        key: secret key of the digests, 16 to 64 bytes.
        workers: number of processes; 0 decodes in this process, without protection from hangs and crashes.
        timeout: seconds of waiting for one file.

    Raises:
        UserError: an argument is outside what is allowed, or this machine cannot start workers.
    """

    def __init__(self, root: Path, spec: ImageSpec, key: bytes, workers: int = 2, timeout: float = 20.0) -> None:
        if not 16 <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise UserError(f"The digest key has {len(key)} bytes; give 16 to {hashlib.blake2b.MAX_KEY_SIZE}.")
        if not is_integer(workers) or workers < 0:
            raise UserError(f"The number of decoding workers is {workers!r}; give a whole number, or 0 for none.")
        if not 0 < timeout <= 86_400:
            raise UserError(f"The decoding timeout is {timeout!r} seconds; give a positive number up to 86400.")
        self._root, self._spec, self._key, self._count, self._timeout = Path(root), spec, bytes(key), workers, timeout
        self._workers: list[_Worker] = []
        self._selector: selectors.BaseSelector | None = None
        self._mapping = False

    def __enter__(self) -> DecodePool:
        self._selector = selectors.DefaultSelector()
        try:
            for _ in range(self._count):
                self._workers.append(self._start())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []
        if self._selector is not None:
            self._selector.close()
            self._selector = None

    def map(self, relatives: Iterable[str]) -> Iterator[Decoded]:
        """Decodes `root/relative` for each path, in order, reading a bounded stretch of `relatives` ahead.

        One `map` at a time; one that is abandoned leaves the pool usable.
        """
        if self._selector is None or self._mapping:
            raise InternalError("A DecodePool was used outside its with block, or for two maps at the same time.")
        if not self._count:
            yield from (decode_file(self._root, relative, self._spec, self._key) for relative in relatives)
            return
        self._mapping = True
        chunks, pending = self._cut(relatives), deque[_Chunk]()
        try:
            while True:
                self._supply(chunks, pending)
                if not pending:
                    return
                if pending[0].names:
                    self._listen(self._selector)
                else:
                    yield from pending.popleft().results
        finally:
            self._mapping = False
            for worker in [worker for worker in self._workers if worker.chunks]:
                self._replace(worker).chunks.clear()

    def _cut(self, relatives: Iterable[str]) -> Iterator[_Chunk]:
        """Cuts the input into chunks bounded in files, in pixels and in names."""
        most = max(1, min(CHUNK_FILES, CHUNK_PIXELS // math.prod(self._spec.shape)))
        names: deque[bytes] = deque()
        length = 0
        for relative in relatives:
            # What is longer than MAX_NAME is refused unopened, so its beginning will do.
            names.append(relative[: MAX_NAME + 1].encode(errors="surrogatepass"))
            length += len(names[-1])
            if len(names) == most or length > CHUNK_NAMES:
                yield _Chunk(names)
                names, length = deque(), 0
        if names:
            yield _Chunk(names)

    def _supply(self, chunks: Iterator[_Chunk], pending: deque[_Chunk]) -> None:
        """Hands out chunks, to the idlest worker first, until all are busy or too many results wait for the oldest."""
        while len(pending) < 2 * CHUNKS_A_WORKER * self._count:
            worker = min(self._workers, key=lambda worker: len(worker.chunks))
            if len(worker.chunks) == CHUNKS_A_WORKER or (chunk := next(chunks, None)) is None:
                return
            pending.append(chunk)
            worker.chunks.append(chunk)
            worker.ask(chunk)

    def _listen(self, selector: selectors.BaseSelector) -> None:
        """Waits until a worker speaks, dies, or has been silent for too long."""
        busy = [worker for worker in self._workers if worker.chunks]
        began = time.monotonic()
        spoke = selector.select(max(0.0, min(self._patience(worker) for worker in busy)))
        # Only time spent waiting counts: a worker is not silent while the caller is busy with earlier results.
        waited = time.monotonic() - began
        for worker in busy:
            worker.silence += waited
        for event, _ in spoke:
            self._hear(cast(_Worker, event.data))
        for worker in busy:
            if worker in self._workers and self._patience(worker) <= 0:
                self._fail(worker, Unreadable.timed_out)

    def _patience(self, worker: _Worker) -> float:
        return (self._timeout if worker.ready else START_TIMEOUT) - worker.silence

    def _hear(self, worker: _Worker) -> None:
        """Takes in the replies that have arrived, or the news that the worker is dead."""
        news = os.read(worker.output.fileno(), 2**20)
        if not news:
            self._fail(worker, Unreadable.crashed)
            return
        worker.silence = 0.0
        replies = worker.replies
        replies += news
        if not worker.ready:
            worker.ready = True
            del replies[: len(READY)]
        start = 0
        while start < len(replies):
            end = start + 1 + (0 if replies[start] else DIGEST_SIZE + math.prod(self._spec.shape))
            if end > len(replies):
                break
            if not worker.chunks or replies[start] > len(FAULTS):  # a broken decoder may say anything
                self._fail(worker, Unreadable.crashed)
                return
            chunk = worker.chunks[0]
            chunk.answer(self._parse(replies[start:end]))
            if not chunk.names:
                worker.chunks.popleft()
            start = end
        del replies[:start]

    def _parse(self, reply: bytearray) -> Decoded:
        if reply[0]:
            return nothing(FAULTS[reply[0] - 1])
        pixels = np.frombuffer(reply, np.uint8, offset=1 + DIGEST_SIZE).reshape(self._spec.shape)
        return Decoded(bytes(reply[1 : 1 + DIGEST_SIZE]), pixels, None)

    def _fail(self, worker: _Worker, fault: Unreadable) -> None:
        """Replaces a worker; the file it was at is given up if it was the second worker to fail there."""
        if not worker.ready:
            raise UserError(
                "A decoding process ended or hung while starting; check that this Python can start processes, import "
                "numpy and pillow, and use 2.5 GiB of memory in each, or decode in this process with workers=0."
            )
        if worker.chunks:
            chunk = worker.chunks[0]
            chunk.strikes += 1
            if chunk.strikes == 2:
                chunk.answer(nothing(fault))
                if not chunk.names:
                    worker.chunks.popleft()
        successor = self._replace(worker)
        for chunk in successor.chunks:
            successor.ask(chunk)

    def _replace(self, worker: _Worker) -> _Worker:
        """Kills a worker and starts another, which inherits its chunks."""
        cast(selectors.BaseSelector, self._selector).unregister(worker.output)
        worker.stop()
        self._workers.remove(worker)
        successor = self._start(careful=len(worker.chunks))
        successor.chunks = worker.chunks
        self._workers.append(successor)
        return successor

    def _start(self, careful: int = 0) -> _Worker:
        """Starts a worker that replies after every file in its first `careful` chunks, and in batches afterwards."""
        greeting = {
            "root": base64.b64encode(os.fsencode(self._root.absolute())).decode(),
            "spec": dataclasses.asdict(self._spec),
            "key": self._key.hex(),  # over the pipe, because a process list shows arguments
            "alarm": 2 * self._timeout,
            "careful": careful,
        }
        try:
            worker = _Worker(json.dumps(greeting).encode() + b"\n")
        except OSError:
            raise UserError(
                "A decoding process cannot be started; free processes, memory or open files, or decode in this "
                "process with workers=0."
            ) from None
        cast(selectors.BaseSelector, self._selector).register(worker.output, selectors.EVENT_READ, worker)
        return worker
