"""One form for all sets: class folders of plain PNG, `metadata.jsonl`, `LICENSE` and `SOURCE.json`.

Foreign pictures are decoded with a cap on their pixels, laid on white, made at most `MAX_SIDE` pixels long, and
written anew without anything but pixels. Names and order follow from the sources alone, so the same packages give the
same folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sfumato import __version__
from sfumato._files import write_json

MAX_SIDE = 256  # pixels
MAX_PIXELS = 2**24  # of a foreign picture before it is decoded
MAX_TEXT = 1000  # characters of a caption, a tag or a name


@dataclass(frozen=True)
class Package:
    """Where pictures came from.

    Attributes:
        kind: debian, npm or pypi.
        name: of the package.
        version: of the package.
        sha256: of the file.
        authenticated: how the file was found to be genuine.
        path: the file.
    """

    kind: str
    name: str
    version: str
    sha256: str
    authenticated: str
    path: Path


@dataclass(frozen=True)
class Collection:
    """A public image set that can be fetched.

    Attributes:
        name: what the user types.
        description: one line.
        licence: SPDX names, in short.
        images: how many, with the pinned packages.
        download: bytes to download.
        write: writes the set into a folder: `write(folder, archives, progress)`, where `archives` keeps the packages
            and `progress` is told the number of images written.
    """

    name: str
    description: str
    licence: str
    images: int
    download: int
    write: Callable[[Path, Path, Callable[[int], None]], None]


@dataclass(frozen=True, slots=True)
class _Record:
    source: str
    number: int  # of the file, in the order of writing
    pixels: bytes  # hash
    folder: str
    facts: dict[str, object]


class PictureFolder:
    """Writes a set. Pictures may come in any order; `finish` sorts them by source, drops repetitions and names them.

    Args:
        folder: an existing folder.
        progress: told the number of pictures written.
    """

    def __init__(self, folder: Path, progress: Callable[[int], None]) -> None:
        self.folder = folder
        self.skipped: Counter[str] = Counter()
        self._progress = progress
        self._records: list[_Record] = []

    def add(
        self,
        picture: bytes | Image.Image | None,
        source: str,
        label: str,
        text: str | None = None,
        *,
        licence: str,
        author: str | None = None,
        tags: Sequence[str] = (),
        folder: str | None = None,
    ) -> None:
        """Takes a picture in; one that cannot be read or shows nothing is skipped and counted.

        Args:
            picture: an encoded PNG, an image of mode L or RGB, or None for a picture that could not be had.
            source: where it comes from; unique.
            label: its class, written as a slug.
            text: its caption.
            licence: SPDX name, in short.
            author: who made it, where that is known.
            tags: further words about it.
            folder: of the class, where `label` cannot be a slug and is to be kept as it is.
        """
        if isinstance(picture, bytes | None):
            try:
                picture = plain(picture or b"")
            except ValueError:
                self.skipped["unreadable"] += 1
                return
        if all(low == high for low, high in _extrema(picture)):
            self.skipped["blank"] += 1
            return
        number = len(self._records)
        # Pillow is twice as fast with a buffer as with a path.
        picture.save(png := io.BytesIO(), "PNG")
        self._part(number).write_bytes(png.getvalue())
        facts: dict[str, object] = {
            "label": label if folder else slug(label),
            "text": tidy(text),
            "source": source,
            "licence": licence,
        }
        facts |= {"author": tidy(author), "tags": [word for tag in tags if (word := tidy(tag))]}
        pixels = hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).digest()
        self._records.append(_Record(source, number, pixels, slug(folder or label), facts))
        self._progress(number + 1)

    def finish(self, name: str, licence: str, packages: Sequence[Package] = ()) -> None:
        """Names the pictures and writes everything else.

        Args:
            name: of the set.
            licence: text for the file LICENSE.
            packages: where the pictures came from.
        """
        seen: set[bytes] = set()
        lines: list[str] = []
        for record in sorted(self._records, key=lambda record: (record.source, record.number)):
            if record.pixels in seen:
                self.skipped["repeated"] += 1
                self._part(record.number).unlink()
                continue
            seen.add(record.pixels)
            file_name = f"{record.folder}/{len(lines):05}.png"
            (self.folder / record.folder).mkdir(exist_ok=True)
            self._part(record.number).rename(self.folder / file_name)
            lines.append(json.dumps({"file_name": file_name} | record.facts, ensure_ascii=False))
        (self.folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (self.folder / "LICENSE").write_text(licence, encoding="utf-8")
        origin = [{field: getattr(package, field) for field in PACKAGE_FIELDS} for package in packages]
        facts = {"name": name, "count": len(lines), "skipped": dict(sorted(self.skipped.items())), "packages": origin}
        write_json(
            self.folder / "SOURCE.json", facts | {"longest_side": MAX_SIDE, "written_by": f"sfumato {__version__}"}
        )

    def _part(self, number: int) -> Path:
        return self.folder / f"{number}.part"


PACKAGE_FIELDS = ("kind", "name", "version", "sha256", "authenticated")


def plain(data: bytes) -> Image.Image:
    """A PNG as an RGB image on white, at most `MAX_SIDE` pixels long; of an animation the first frame.

    Raises:
        ValueError: as `transparent`.
    """
    picture = transparent(data)
    white = Image.new("RGBA", picture.size, "white")
    result = Image.alpha_composite(white, picture).convert("RGB")
    result.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return result


def transparent(data: bytes) -> Image.Image:
    """A PNG as an RGBA image; of an animation the first frame.

    Raises:
        ValueError: not a PNG, damaged, or of more than `MAX_PIXELS` pixels.
    """
    # The header is read by hand: Pillow would print a warning about pictures that are refused here anyway.
    width, height = struct.unpack(">II", data[16:24]) if len(data) >= 24 else (0, 0)
    if width * height > MAX_PIXELS:
        raise ValueError("not a picture that can be read: it has too many pixels")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return image.convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError("not a picture that can be read") from error


def slug(word: str) -> str:
    """A name for a folder: lower-case ASCII letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")[:60] or "other"


def tidy(text: str | None) -> str | None:
    """Words with single spaces and nothing invisible among them, at most `MAX_TEXT` characters; None for no word."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text or "").split())
    return words[:MAX_TEXT].rstrip() or None


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    found = image.getextrema()
    return [found] if isinstance(found[0], int | float) else list(found)  # type: ignore[list-item]
