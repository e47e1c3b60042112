"""The process that `decode_pool.DecodePool` starts: file names in on stdin, pixels out on stdout, until stdin ends."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO, cast

from sfumato.data.decode import Decoded, ImageSpec, Unreadable, decode_file
from sfumato.data.decode_pool import FAULTS, READY

MEMORY_LIMIT = 5 * 2**29  # bytes of address space; the largest image allowed, a WebP, was seen to take 1.9 GB
LONGEST_SILENCE = 0.1  # seconds: replies are sent together, because waking the parent costs more than a small image


def main() -> None:
    """Serves one pool: reads a line of JSON with its constants, then chunks of names as `_Worker.ask` writes them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which may want to finish in good order
    _limit(resource.RLIMIT_AS, MEMORY_LIMIT)
    _limit(resource.RLIMIT_CORE, 0)  # a core dump would hold private pixels
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb", buffering=2**16)
    os.dup2(2, 1)  # what a C library prints must not end up among the replies
    greeting = json.loads(requests.readline())
    root = Path(os.fsdecode(base64.b64decode(greeting["root"])))
    spec = ImageSpec(**greeting["spec"] | {"range16": tuple(greeting["spec"]["range16"])})
    key = bytes.fromhex(greeting["key"])
    replies.write(READY)
    replies.flush()
    careful, spoke = greeting["careful"], time.monotonic()
    while count := _number(requests):
        for _ in range(count):
            relative = requests.read(_number(requests)).decode(errors="surrogatepass")
            # The parent kills a worker that hangs. The alarm, whose default is to end the process, is for its absence.
            signal.setitimer(signal.ITIMER_REAL, greeting["alarm"])
            decoded = decode_file(root, relative, spec, key)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if decoded.fault is Unreadable.crashed:
                os._exit(1)  # out of memory, perhaps through earlier files: let a fresh process try
            replies.write(_reply(decoded))
            if careful > 0 or time.monotonic() - spoke > LONGEST_SILENCE:
                replies.flush()
                spoke = time.monotonic()
        replies.flush()
        careful -= 1


def _number(requests: BinaryIO) -> int:
    """The next two bytes; 0 at the end of input."""
    return int.from_bytes(requests.read(2), "big")


def _reply(decoded: Decoded) -> bytes:
    if decoded.pixels is None:
        return bytes([1 + FAULTS.index(cast(Unreadable, decoded.fault))])
    return b"\0" + decoded.digest + decoded.pixels.tobytes()


def _limit(what: int, value: int) -> None:
    """Lowers a resource limit where the system has it."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (value, value))


if __name__ == "__main__":
    main()
