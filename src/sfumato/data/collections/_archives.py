"""Members of foreign archives, read in memory one by one; nothing is unpacked, no name in them becomes a path.

What is read is bounded: each member by what its reader allows, an archive by `MAX_TOTAL`, whatever its headers say.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol, cast

MAX_TOTAL = 2**31  # decoded bytes of one archive
FAULTS = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)

Wanted = Callable[[str], int]  # the most bytes that the member of this name may have; 0 if it is not wanted
Member = tuple[str, bytes | None]  # name and content; None for a wanted member that is too large or damaged


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Window:
    """A file that ends `size` bytes further on."""

    def __init__(self, file: _Readable, size: int) -> None:
        self.file = file
        self.left = size

    def read(self, size: int = -1, /) -> bytes:
        data = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        return data


class _Capped(_Window):
    """A stream that must not decode to more than `size` bytes."""

    def read(self, size: int = -1, /) -> bytes:
        if self.left <= 0:
            raise ValueError("an archive that swells beyond what is allowed")
        return super().read(size)


def deb_members(package: IO[bytes], wanted: Wanted) -> Iterator[Member]:
    """Regular files of a Debian package; no script of the package is run.

    A package is an `ar` archive (deb(5)) whose member `data.tar.*` holds the files.

    Args:
        package: the `.deb`, open at its beginning.
        wanted: see `Wanted`; asked for names such as `usr/share/doc/x/copyright`.

    Raises:
        ValueError: not a package, damaged, swelling, or compressed in a way this Python cannot read.
    """
    if package.read(8) != b"!<arch>\n":
        raise ValueError("not a Debian package")
    while len(header := package.read(60)) == 60:  # name 16, date 12, owner 6, group 6, mode 8, size 10, end 2
        if not re.fullmatch(rb"[0-9]+ *", header[48:58]):
            raise ValueError("a damaged Debian package")
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            ending = header[:16].decode("latin-1").strip(" /").removeprefix("data.tar")
            yield from _data_members(_Window(package, size), ending, wanted)
            return
        package.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError("a Debian package without data")


def _data_members(data: _Window, ending: str, wanted: Wanted) -> Iterator[Member]:
    try:
        if ending == ".xz":
            with lzma.LZMAFile(cast(IO[bytes], data)) as stream:  # it only reads
                yield from tar_members(stream, wanted)
        elif ending == ".gz":
            with gzip.GzipFile(fileobj=cast(IO[bytes], data)) as stream:
                yield from tar_members(stream, wanted)
        elif not ending:
            yield from tar_members(data, wanted)
        else:
            raise ValueError(f"a Debian package whose data cannot be read (compressed as {ending})")
    except FAULTS as error:
        raise ValueError("a Debian package whose data cannot be read") from error


def npm_members(package: IO[bytes], wanted: Wanted) -> Iterator[Member]:
    """Regular files of an npm tarball, with names such as `package/package.json`.

    Raises:
        ValueError: damaged or swelling.
    """
    try:
        with gzip.GzipFile(fileobj=package) as stream:
            yield from tar_members(stream, wanted)
    except FAULTS as error:
        raise ValueError("an npm package that cannot be read") from error


def tar_members(stream: _Readable, wanted: Wanted) -> Iterator[Member]:
    """Regular files of an uncompressed tar stream, read front to back."""
    with tarfile.open(fileobj=_Capped(stream, MAX_TOTAL), mode="r|") as tar:  # type: ignore[call-overload]
        for member in tar:
            name = member.name.removeprefix("./")
            limit = wanted(name) if member.isreg() else 0
            if limit:
                file = tar.extractfile(member) if member.size <= limit else None
                yield name, None if file is None else file.read()
            tar.members.clear()  # or it would remember thousands


def zip_members(package: IO[bytes] | Path, wanted: Wanted) -> Iterator[Member]:
    """Files of a zip archive (a wheel, a furniture library), sorted by name.

    Raises:
        ValueError: not a zip archive, or swelling.
    """
    left = MAX_TOTAL
    try:
        with zipfile.ZipFile(package) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                limit = 0 if info.is_dir() else wanted(info.filename)
                if limit:
                    data = _zip_member(archive, info, limit)
                    left -= len(data or b"")
                    if left < 0:
                        raise ValueError("an archive that swells beyond what is allowed")
                    yield info.filename, data
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError("a zip archive that cannot be read") from error


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes | None:
    try:
        with archive.open(info) as file:
            data = file.read(limit + 1)  # the size in the header may be a lie
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, *FAULTS):  # RuntimeError: encrypted
        return None
    return data if len(data) <= limit else None
