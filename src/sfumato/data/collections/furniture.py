"""The furniture libraries of Sweet Home 3D: small renderings of things in and around a house, with names."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

from sfumato.data.collections._archives import deb_members, zip_members
from sfumato.data.collections._debian import Deb, fetch_debs
from sfumato.data.collections._folder import Collection, PictureFolder

LIBRARIES = Deb(
    "sweethome3d-furniture",
    "1.8-1",
    "sweethome3d-furniture",
    "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
    2**28,
)
ROOT = "usr/share/sweethome3d/furniture/"
COPYRIGHT = f"usr/share/doc/{LIBRARIES.name}/copyright"
CATALOGUE = "PluginFurnitureCatalog.properties"
MAX_LIBRARY = 2**27  # bytes
MAX_MEMBER = 2**21  # bytes
LICENCES = {"BlendSwap-CC-0": "CC0-1.0", "KatorLegaz": "CC-BY-3.0-US", "Reallusion": "CC-BY-3.0-US"}


def write(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes the set: the icons of the catalogues, labelled by category."""
    packages = fetch_debs([LIBRARIES], archives)
    pictures = PictureFolder(folder, progress)
    licence = b""
    with packages[0].path.open("rb") as file:
        for name, data in deb_members(file, limit):
            if name == COPYRIGHT:
                licence = data or b""
            else:
                library = name.removeprefix(ROOT).removesuffix(".sh3f")
                _add_library(pictures, f"{packages[0].name} {packages[0].version}", library, data or b"")
    pictures.finish("furniture", licence.decode(errors="replace"), packages)


def limit(name: str) -> int:
    """The most bytes a member of the package may have; 0 if it is not needed."""
    if name == COPYRIGHT:
        return MAX_MEMBER
    return MAX_LIBRARY if name.startswith(ROOT) and name.endswith(".sh3f") else 0


def _add_library(pictures: PictureFolder, package: str, library: str, archive: bytes) -> None:
    members = dict(
        zip_members(io.BytesIO(archive), lambda name: MAX_MEMBER * (name == CATALOGUE or name.endswith(".png")))
    )
    for piece in read_catalogue(members.get(CATALOGUE) or b""):
        icon = piece.get("icon", "").lstrip("/")
        pictures.add(
            members.get(icon),
            f"{package}: {library}/{icon}",
            piece.get("category", "Miscellaneous"),
            piece.get("name"),
            licence=LICENCES.get(library, "CC-BY-3.0"),
            author=piece.get("creator"),
            tags=[tag for word in piece.get("tags", "").split(",") if (tag := word.strip())],
        )


def read_catalogue(properties: bytes) -> list[dict[str, str]]:
    """The pieces of a furniture catalogue, a Java properties file with lines such as `name#7=Armchair`, by number."""
    pieces: dict[int, dict[str, str]] = {}
    for line in properties.decode("latin-1").splitlines():
        found = re.fullmatch(r"\s*(\w+)#([0-9]{1,6})\s*[=:]\s*(.*)", line)
        if found is not None:
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), found[3])
            pieces.setdefault(int(found[2]), {})[found[1]] = re.sub(r"\\(.)", r"\1", value).strip()
    return [pieces[number] for number in sorted(pieces)]


COLLECTION = Collection(
    "furniture", "renderings of furniture with names, about 128 pixels", "CC-BY-3.0, CC0-1.0", 820, 119_782_356, write
)
