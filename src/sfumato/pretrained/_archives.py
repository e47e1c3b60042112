"""Published archives that carry weights: known by pinned checksum, opened as files, never built, never imported."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sfumato._packages import is_published, pinned_npm, pinned_wheel
from sfumato.errors import UserError

Progress = Callable[[int, int], None]
"""Told the bytes that are there and the bytes there will be."""


@dataclass(frozen=True)
class Archive(ABC):
    """A published file, known by its checksum.

    Attributes:
        project: its name in the registry.
        version: the release.
        file: name of the file.
        size: bytes.
        sha256: of the file, 64 hexadecimal digits.
    """

    registry: ClassVar[str]

    project: str
    version: str
    file: str
    size: int
    sha256: str

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return f"{self.registry} {self.project} {self.version}"

    def fetch(self, folder: Path, offered: Path | None, progress: Progress) -> Path:
        """The archive on disk, checked.

        Args:
            folder: where it is downloaded to; what an earlier call left there is used.
            offered: a folder of archives to look into before the registry.
            progress: told how it goes.

        Raises:
            UserError: it cannot be had, or what was found is not the published file.
        """
        if offered is not None and (offered / self.file).exists():
            place = offered / self.file
            if not is_published(place, self.sha256, self.size):
                raise UserError(
                    f"{place} is not the published file of {self.source} (its SHA-256 is not {self.sha256}), so it is "
                    "refused. Fetch it from a registry you trust."
                )
        else:
            place = self._download(folder, lambda received: progress(min(received, self.size), self.size))
        progress(self.size, self.size)
        return place

    @abstractmethod
    def read(self, place: Path, members: Mapping[str, int]) -> dict[str, bytes]:
        """Members by their whole names; each must have exactly the given number of bytes.

        Nothing is unpacked to disk, so a member's name leads nowhere, and no more is read than was asked for.

        Raises:
            ValueError: not such an archive, or a member is missing, damaged or of another size.
        """

    @abstractmethod
    def _download(self, folder: Path, progress: Callable[[int], None]) -> Path: ...


class Wheel(Archive):
    """A Python wheel, fetched by pip from the user's package index."""

    registry = "PyPI"

    def _download(self, folder: Path, progress: Callable[[int], None]) -> Path:
        return pinned_wheel(self.project, self.version, self.file, self.sha256, self.size, folder, progress)

    def read(self, place: Path, members: Mapping[str, int]) -> dict[str, bytes]:
        read = {}
        try:
            with zipfile.ZipFile(place) as archive:
                for name, size in members.items():
                    with archive.open(name) as file:
                        data = file.read(size + 1)
                    if len(data) != size:
                        raise ValueError(f"{place.name}: {name} is not {size} bytes long")
                    read[name] = data
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{place.name} is not the expected wheel: {error}") from error
        return read


class NpmTarball(Archive):
    """A package of the npm registry, fetched from the user's registry; `file` is named as `npm pack` names it."""

    registry = "npm"

    def _download(self, folder: Path, progress: Callable[[int], None]) -> Path:
        return pinned_npm(self.project, self.version, self.sha256, self.size, folder, progress)

    def read(self, place: Path, members: Mapping[str, int]) -> dict[str, bytes]:
        read = {}
        try:
            with tarfile.open(place, "r:gz") as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.name in members and member.isreg() else None
                    if file is not None and member.size == members[member.name]:
                        read[member.name] = file.read()
                    if len(read) == len(members):
                        break
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{place.name} is not the expected tarball: {error}") from error
        missing = members.keys() - read.keys()
        if missing:
            raise ValueError(f"{place.name}: {', '.join(sorted(missing))} missing or of another size")
        return read
