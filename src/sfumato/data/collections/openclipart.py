"""Open Clip Art 0.18: drawings with titles and keywords, from Debian's PNG renderings and their SVG twins."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.data.collections._archives import deb_members
from sfumato.data.collections._debian import Deb, fetch_debs
from sfumato.data.collections._folder import Collection, PictureFolder
from sfumato.data.collections._svg import parse_xml

PNG = Deb(
    "openclipart-png",
    "0.18+dfsg-19",
    "openclipart",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    2**28,
)
SVG = Deb(
    "openclipart-svg",
    "0.18+dfsg-19",
    "openclipart",
    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    2**26,
)
LICENCE = "Public domain (CC-PDDC)"
COPYRIGHT = f"usr/share/doc/{PNG.name}/copyright"
ROOT = "usr/share/openclipart/"
MAX_MEMBER = 2**23  # bytes
MAX_SHARED = 4  # drawings with one title; a title of more of them says nothing about any
JUNK = frozenset({"hash"})  # a keyword that a broken program gave to thousands of drawings
DC = "{http://purl.org/dc/elements/1.1/}"
CC = ("{http://web.resource.org/cc/}", "{http://creativecommons.org/ns#}")
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


@dataclass(frozen=True)
class Description:
    """What a drawing says about itself; words may be missing."""

    title: str | None = None
    keywords: Sequence[str] = ()
    author: str | None = None


def write(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes the set. Labels are the top folders, tags the lower folders and the keywords."""
    packages = fetch_debs((PNG, SVG), archives)
    descriptions = {}
    with packages[1].path.open("rb") as file:
        for name, data in deb_members(file, lambda name: MAX_MEMBER * _is(name, "svg")):
            descriptions[stem(name)] = describe(data or b"")
    shared = Counter(about.title for about in descriptions.values())
    pictures = PictureFolder(folder, progress)
    licence = b""
    with packages[0].path.open("rb") as file:
        for name, data in deb_members(file, png_limit):
            if name == COPYRIGHT:
                licence = data or b""
                continue
            drawing = stem(name)
            category, further = folders(drawing)
            about = descriptions.get(drawing, Description())
            tags = [*(word.replace("_", " ") for word in further), *about.keywords]
            pictures.add(
                data,
                f"{packages[0].name} {packages[0].version}: {drawing}.png",
                category,
                caption(drawing, about, shared[about.title]),
                licence=LICENCE,
                author=about.author,
                tags=list(dict.fromkeys(tag for tag in tags if tag not in JUNK)),
            )
    pictures.finish("openclipart", licence.decode(errors="replace"), packages)


def describe(svg: bytes) -> Description:
    """Title, keywords and author from the Dublin Core metadata of an SVG; nothing if it cannot be read."""
    try:
        root = parse_xml(svg)
    except ValueError:
        return Description()
    work = next((found for space in CC if (found := root.find(f".//{space}Work")) is not None), None)
    if work is None:
        return Description()
    keywords = [(item.text or "").strip() for item in work.iterfind(f"{DC}subject/{RDF}Bag/{RDF}li")]
    title, author = (work.findtext(path) for path in (f"{DC}title", f"{DC}creator/*/{DC}title"))
    return Description(title, [word for word in keywords if word], author)


def caption(stem: str, about: Description, drawings: int) -> str:
    """What a drawing shows: its title, or the words of its file's name where the title is that of a whole collection.

    Args:
        stem: path of the drawing, such as `animals/2_dead_frogs_lumen_desig_01`.
        about: what it says about itself.
        drawings: how many have its title.
    """
    title, author = about.title or "", about.author or ""
    if title and drawings <= MAX_SHARED and not (author and author.lower() in title.lower()):
        return title
    words = re.split(r"[-_ ]+", re.sub(r"_[0-9]*$", "", stem.rpartition("/")[2]))
    signature = re.sub(r"[^a-z0-9]+", "_", author.lower())
    for place in range(1, len(words)):  # file names end in their author's, cut short
        if signature.startswith("_".join(words[place:]).lower()):
            words = words[:place]
            break
    found = " ".join(re.sub(r"(?<=[^\W\d])\d+$", "", word) for word in words if word)
    return found if re.search(r"[^\W\d]", found) else title


def png_limit(name: str) -> int:
    """Bytes to read of a member of the package of renderings: the renderings and the licence, nothing else."""
    return MAX_MEMBER * (_is(name, "png") or name == COPYRIGHT)


def stem(name: str) -> str:
    """`usr/share/openclipart/png/animals/bat.png` as `animals/bat`."""
    return name.removeprefix(ROOT).partition("/")[2].rpartition(".")[0]


def folders(stem: str) -> tuple[str, list[str]]:
    """The top folder of a drawing and those below it."""
    category, *further = stem.split("/")[:-1] or ["unsorted"]
    return category, further


def _is(name: str, kind: str) -> bool:
    return name.startswith(f"{ROOT}{kind}/") and name.endswith(f".{kind}")


COLLECTION = Collection(
    "openclipart", "drawings with titles and keywords, up to 256 pixels", LICENCE, 6801, 155_829_096, write
)
