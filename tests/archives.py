"""Small foreign archives, made in memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.collections._debian import Deb


def ar(*members: tuple[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members:
        header = f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(data):<10}`\n"
        parts.append(header.encode() + data + b"\n" * (len(data) % 2))
    return b"".join(parts)


def tar(files: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w:xz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def deb(data: bytes | Mapping[str, bytes], name: str = "data.tar.xz") -> bytes:
    content = data if isinstance(data, bytes) else tar({f"./{path}": file for path, file in data.items()})
    return ar(("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), (name, content))


def tgz(files: Mapping[str, bytes]) -> bytes:
    return gzip.compress(tar(files, "w"))


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def png(seed: int = 0, size: tuple[int, int] = (12, 9), mode: str = "RGBA") -> bytes:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels, mode).save(buffer, "PNG")
    return buffer.getvalue()


def pinned(folder: Path, package: bytes, like: Deb) -> Deb:
    """Puts a package into a folder of archives; its pin."""
    folder.mkdir(exist_ok=True)
    (folder / f"{like.name}_{like.version}_all.deb").write_bytes(package)
    return Deb(like.name, like.version, like.source, sha256(package), like.max_bytes)
