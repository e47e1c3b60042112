"""SVG from elsewhere: parsed without entities, drawn only if it needs nothing outside itself and stays small."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET
from xml.parsers import expat

from sfumato.errors import UserError

MAX_BYTES = 2**22  # of a file
MAX_ELEMENTS = 100_000  # of a file, counting what is referred to as often as it is
MAX_DEPTH = 200
DPI = 96.0  # CSS pixels an inch
# Text would need fonts, and pictures inside pictures a decoder of their own.
UNDRAWABLE = frozenset({"text", "image", "feImage", "foreignObject", "script"})


def parse_xml(data: bytes) -> ET.Element:
    """The root of an XML document that declares no entity; nothing outside the document is read.

    Raises:
        ValueError: not well-formed, too large or too deep, or with a declaration of an entity.
    """
    if len(data) > MAX_BYTES:
        raise ValueError("XML of too many bytes")
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")
    depth = elements = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > MAX_DEPTH or elements > MAX_ELEMENTS:
            raise ValueError("XML of too many elements")
        builder.start(_clark(tag), {_clark(name): value for name, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_clark(tag))

    def refuse(*_: object) -> int:
        raise ValueError("XML that declares entities")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = parser.UnparsedEntityDeclHandler = parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, LookupError, AssertionError) as error:  # LookupError: an unknown encoding
        raise ValueError("not XML") from error


def rasterise(data: bytes, side: int) -> bytes:
    """An SVG drawn as PNG with alpha, its longer side `side` pixels.

    Raises:
        ValueError: not SVG, or one that holds text or pictures, refers outside itself, or swells.
        UserError: the rasteriser is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError(
            "These pictures are SVG and need the rasteriser resvg-py: `pip install 'sfumato[offline]'`."
        ) from None
    root = parse_xml(data)
    _check(root)
    # Written anew from the tree that was checked, so that what is drawn is what was checked.
    return resvg_py.svg_to_bytes(
        svg_string=ET.tostring(root, encoding="unicode"), width=side, height=side, dpi=DPI, skip_system_fonts=True
    )


def _check(root: ET.Element) -> None:
    """Raises ValueError if a drawing is undrawable, refers outside itself, or unfolds into too many elements."""
    identified = {element.get("id"): element for element in root.iter()}
    sizes: dict[ET.Element, int] = {}  # unfolded elements; 0 while they are counted

    def size(element: ET.Element) -> int:
        if element in sizes:
            if not sizes[element]:
                raise ValueError("an SVG that refers to itself")
            return sizes[element]
        kind = element.tag.rpartition("}")[2]
        if kind in UNDRAWABLE or (kind == "style" and re.search(r"url|[@\\]", element.text or "", re.IGNORECASE)):
            raise ValueError("an SVG with text, pictures, or a style sheet that refers to something")
        sizes[element] = 0
        parts = [*element, *(identified[name] for name in _references(element) if name in identified)]
        sizes[element] = 1 + sum(size(part) for part in parts)
        if sizes[element] > MAX_ELEMENTS:
            raise ValueError("an SVG that unfolds into too many elements")
        return sizes[element]

    try:
        size(root)
    except RecursionError:
        raise ValueError("an SVG that refers too deeply") from None


def _references(element: ET.Element) -> Iterator[str]:
    """Identifiers that an element refers to; raises ValueError for anything outside the file."""
    for name, value in element.attrib.items():
        found = re.findall(r"url\(\s*[\"']?([^\"')]*)", value, flags=re.IGNORECASE)
        if name.rpartition("}")[2] == "href" and element.tag.rpartition("}")[2] != "a":
            found.append(value)
        for target in found:
            if not target.strip().startswith("#"):
                raise ValueError("an SVG that refers outside itself")
            yield target.strip()[1:]


def _clark(name: str) -> str:
    return "{" + name if "}" in name else name
