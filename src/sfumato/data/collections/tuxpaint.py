"""The stamps of Tux Paint: photographs and drawings, each with a one-sentence caption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sfumato.data.collections._archives import deb_members
from sfumato.data.collections._debian import Deb, fetch_debs
from sfumato.data.collections._folder import MAX_SIDE, Collection, PictureFolder
from sfumato.data.collections._svg import rasterise

STAMPS = Deb(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "tuxpaint-stamps",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    2**28,
)
ROOT = "usr/share/tuxpaint/stamps/"
COPYRIGHT = f"usr/share/doc/{STAMPS.name}/copyright"
LIMITS = {"png": 2**23, "svg": 2**21, "txt": 2**16}  # bytes by kind of file
LICENCE = "GPL-2.0-or-later"


def write(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes the set. Labels are the top folders, tags the lower ones; stamps without a caption are left out."""
    packages = fetch_debs([STAMPS], archives)
    drawn: dict[str, dict[str, bytes]] = {}
    licence = b""
    with packages[0].path.open("rb") as file:
        for name, data in deb_members(file, limit):
            if name == COPYRIGHT:
                licence = data or b""
            else:
                stem, _, kind = name.removeprefix(ROOT).rpartition(".")
                drawn.setdefault(stem, {})[kind] = data or b""
    pictures = PictureFolder(folder, progress)
    for stem, parts in drawn.items():
        text = caption(parts.get("txt", b""))
        if not text or not parts.keys() & {"png", "svg"}:
            pictures.skipped["without caption" if not text else "without picture"] += 1
            continue
        category, *further = stem.split("/")[:-1] or ["unsorted"]
        kind = "png" if "png" in parts else "svg"
        source = f"{packages[0].name} {packages[0].version}: {stem}.{kind}"
        pictures.add(_picture(parts, kind), source, category, text, licence=LICENCE, tags=further)
    pictures.finish("tuxpaint-stamps", licence.decode(errors="replace"), packages)


def limit(name: str) -> int:
    """The most bytes a member of the package may have; 0 for sounds and everything else that is not needed."""
    if name == COPYRIGHT:
        return LIMITS["txt"]
    return LIMITS.get(name.rpartition(".")[2], 0) if name.startswith(ROOT) else 0


def caption(text: bytes) -> str:
    """The English caption: the first line; lines such as `de.utf8=Ein Frosch.` are translations."""
    first = text.decode(errors="replace").partition("\n")[0].strip()
    return "" if ".utf8=" in first else first


def _picture(parts: dict[str, bytes], kind: str) -> bytes:
    try:
        return parts["png"] if kind == "png" else rasterise(parts["svg"], MAX_SIDE)
    except ValueError:
        return b""


COLLECTION = Collection(
    "tuxpaint-stamps", "photographs and drawings with captions, up to 256 pixels", LICENCE, 935, 160_880_444, write
)
