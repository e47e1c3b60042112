"""Three sets of emoji with names and groups: Noto (Google) and Twemoji (Twitter) as PNG; OpenMoji, drawn from SVG."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato._packages import pinned_npm
from sfumato.data.collections._archives import npm_members
from sfumato.data.collections._folder import Collection, Package, PictureFolder
from sfumato.data.collections._svg import rasterise

DATASOURCE_VERSION = "16.0.0"
NOTO_SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
NOTO_LICENCE = """\
The pictures are Noto Emoji, Copyright Google LLC, Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0
Names and groups come from the package emoji-datasource-google under the licence below.

"""
TWEMOJI_SHA256 = "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
TWEMOJI_LICENCE = """\
The pictures are Twemoji, Copyright Twitter, Inc and other contributors, licensed under CC-BY 4.0:
https://creativecommons.org/licenses/by/4.0/. Pictures may have been changed, as the set's description says.
Names and groups come from the package emoji-datasource-twitter under the licence below.

"""
OPENMOJI_VERSION = "17.0.0"
OPENMOJI_SHA256 = "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68"
OPENMOJI_FOLDER = "package/color/svg/"
OPENMOJI_SIDE = 128  # pixels
OPENMOJI_LICENCE = """\
All emojis designed by OpenMoji, the open-source emoji and icon project (https://openmoji.org). License: CC BY-SA 4.0.
Drawn as PNG, otherwise unchanged.

"""
MAX_PICTURE = 2**20  # bytes
MAX_TABLE = 2**24  # bytes
TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}


@dataclass(frozen=True)
class Emoji:
    """What is known about one picture, besides its pixels."""

    text: str
    group: str
    tags: list[str] = field(default_factory=list)
    author: str | None = None


def write_noto(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes Noto's set: 64 pixels, skin tones included."""
    _write_datasource("google", NOTO_SHA256, NOTO, NOTO_LICENCE, folder, archives, progress)


def write_twemoji(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes Twitter's set: 64 pixels, skin tones included."""
    _write_datasource("twitter", TWEMOJI_SHA256, TWEMOJI, TWEMOJI_LICENCE, folder, archives, progress)


def _write_datasource(
    vendor: str,
    sha256: str,
    collection: Collection,
    notice: str,
    folder: Path,
    archives: Path,
    progress: Callable[[int], None],
) -> None:
    """Writes one vendor's pictures of the packages `emoji-datasource-*`, which share their table."""
    name = f"emoji-datasource-{vendor}"
    path = pinned_npm(name, DATASOURCE_VERSION, sha256, 2**27, archives)
    table, licence = _read(path, {"package/emoji.json": MAX_TABLE, "package/LICENSE": MAX_PICTURE})
    pictures = PictureFolder(folder, progress)
    known = datasource_table(table)
    for file, data in _pictures(path, f"package/img/{vendor}/64/", ".png"):
        _add(pictures, known.get(file), data, f"{name} {DATASOURCE_VERSION}: {file}", collection.licence)
    package = Package("npm", name, DATASOURCE_VERSION, sha256, "pinned SHA-256", path)
    pictures.finish(collection.name, notice + licence.decode(errors="replace"), [package])


def write_openmoji(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes OpenMoji's set, 128 pixels."""
    path = pinned_npm("openmoji", OPENMOJI_VERSION, OPENMOJI_SHA256, 2**24, archives)
    extra = {"package/data/openmoji.json": MAX_TABLE, "package/LICENSE.txt": MAX_PICTURE}
    table, licence = _read(path, extra)
    pictures = PictureFolder(folder, progress)
    known = openmoji_table(table)
    for name, data in _pictures(path, OPENMOJI_FOLDER, ".svg"):
        try:
            png = rasterise(data or b"", OPENMOJI_SIDE)
        except ValueError:
            png = b""
        _add(pictures, known.get(name), png, f"openmoji {OPENMOJI_VERSION}: {name}", "CC-BY-SA-4.0")
    package = Package("npm", "openmoji", OPENMOJI_VERSION, OPENMOJI_SHA256, "pinned SHA-256", path)
    pictures.finish("openmoji", OPENMOJI_LICENCE + licence.decode(errors="replace"), [package])


def datasource_table(data: bytes) -> dict[str, Emoji]:
    """Descriptions by file name, from `emoji.json`.

    Raises:
        ValueError: not such a table.
    """
    known = {}
    for entry in _entries(data):
        name = str(entry["name"]).lower()
        tags = [str(entry.get("subcategory") or "").replace("-", " "), *map(_words, entry.get("short_names", []))]
        group = str(entry["category"])
        known[entry["image"]] = Emoji(name, group, tags)
        for tones, variation in (entry.get("skin_variations") or {}).items():
            skin = " and ".join(TONES.get(tone, tone) for tone in dict.fromkeys(tones.split("-")))
            known[variation["image"]] = Emoji(f"{name}, {skin}", group, tags)
    return known


def openmoji_table(data: bytes) -> dict[str, Emoji]:
    """Descriptions by file name, from `openmoji.json`.

    Raises:
        ValueError: not such a table.
    """
    known = {}
    for entry in _entries(data):
        words = f"{entry.get('subgroups') or ''}, {entry.get('tags') or ''}, {entry.get('openmoji_tags') or ''}"
        tags = list(dict.fromkeys(word.strip() for word in words.replace("-", " ").split(",") if word.strip()))
        group = str(entry["group"])
        author = entry.get("openmoji_author")
        known[f"{entry['hexcode']}.svg"] = Emoji(str(entry["annotation"]), group, tags, author)
    return known


def _entries(data: bytes) -> Iterator[dict[str, Any]]:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("a table of emoji that cannot be read") from error
    needed = {"name", "category", "image"}, {"annotation", "group", "hexcode"}
    for entry in table if isinstance(table, list) else []:
        if isinstance(entry, dict) and any(names <= entry.keys() for names in needed):
            yield entry


def _words(name: str) -> str:
    return re.sub(r"[-_]", " ", str(name))


def _read(path: Path, limits: dict[str, int]) -> list[bytes]:
    with path.open("rb") as file:
        members = dict(npm_members(file, lambda name: limits.get(name, 0)))
    return [members.get(name) or b"" for name in limits]


def _pictures(path: Path, folder: str, ending: str) -> Iterator[tuple[str, bytes | None]]:
    with path.open("rb") as file:
        wanted = MAX_PICTURE
        for name, data in npm_members(file, lambda name: wanted * (name.startswith(folder) and name.endswith(ending))):
            yield name.removeprefix(folder), data


def _add(pictures: PictureFolder, emoji: Emoji | None, data: bytes | None, source: str, licence: str) -> None:
    if emoji is None:
        pictures.skipped["undescribed"] += 1
        return
    pictures.add(data, source, emoji.group, emoji.text, licence=licence, author=emoji.author, tags=emoji.tags)


NOTO = Collection(
    "noto-emoji", "emoji with names, skin tones included, 64 x 64", "Apache-2.0", 3767, 74_344_091, write_noto
)
TWEMOJI = Collection(
    "twemoji", "emoji with names, skin tones included, 64 x 64", "CC-BY-4.0", 3752, 61_683_754, write_twemoji
)
OPENMOJI = Collection(
    "openmoji", "emoji and icons with names and tags, 128 x 128", "CC-BY-SA-4.0", 4247, 4_339_458, write_openmoji
)
