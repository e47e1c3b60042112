"""Letters and digits drawn from free fonts: grey, 28 x 28, light on dark like MNIST, upright and distorted."""

from __future__ import annotations

import hashlib
import io
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sfumato.data.collections._archives import deb_members
from sfumato.data.collections._debian import Deb, fetch_debs
from sfumato.data.collections._folder import Collection, PictureFolder

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
VARIATIONS = 3  # of each character of each font; the first is upright
SIDE = 28  # pixels
SCALE = 4  # drawn so much larger, then averaged
MAX_FONT = 2**22  # bytes
LICENCE = "free font licences, see LICENSE"
# Name, version, source package and SHA-256 of the packages with the fonts.
FONTS = tuple(
    Deb(name, version, source or name, sha256, 2**23)
    for name, version, source, sha256 in (
        (
            "fonts-dejavu-core",
            "2.37-6",
            "fonts-dejavu",
            "8892669e51aab4dc56682c8e39d8ddb7d70fad83c369344e1e240bf3ca22bb76",
        ),
        (
            "fonts-liberation",
            "1.07.4-11",
            "",
            "efd381517f958b01969343634ffcbdd60056be7779af84c6f53a005090430204",
        ),
        ("fonts-open-sans", "1.11-2", "", "ed8c4258af6c23e5105fa18940544f060f3c9664fbe881f25130fe0c65bc1485"),
        ("fonts-comfortaa", "3.001-3", "", "33c65e81b201177a56e6528f7ea5fd6b19f2db0bb6f4f95346b9483691851929"),
        ("fonts-inconsolata", "001.010-6", "", "bb5015c631cd47aa7d9d6e0ecd101f0e1234300f935e7719ea32ed9b640f0ac4"),
        ("fonts-lobstertwo", "2.0-2.1", "", "cd24c217d07c4688e47d6a5bf8e8909638855f4278ba1468e100a589bd15665a"),
        ("fonts-cabin", "1.5-3", "", "3a7a7d6057956273b1afa22534383896e2901bcb98439033d8e7852223365238"),
        ("fonts-quicksand", "0.2016-2.1", "", "1175e5c64f116887b37ec3c8faea1f411bdef356580bc22298c3c9da75fac120"),
        (
            "fonts-courier-prime",
            "0+git20190115-3",
            "",
            "6f827dd190446abbf83972f01e3f0db2c980e73bd6fb85b56d9d9a8f1755149f",
        ),
        ("fonts-humor-sans", "1.0-4", "", "84bd0c40b65dc345e05396a4ffb64282c14fbbb6e7079126eeabc92bd9fe7311"),
        (
            "fonts-comic-neue",
            "2.51-4",
            "comic-neue",
            "6f002dc90d62fde01a2b51f333c09dc6c21ffbfc6ca22d05a84cc049b083c826",
        ),
        ("fonts-dancingscript", "1.2-2", "", "987b8182611e1f3d9e7b19a82787614470dd8c4ed894a4dedbebc2308703b216"),
        (
            "fonts-essays1743",
            "2.100-4",
            "essays1743",
            "bf5b25ffafcd28f584fa37ecf9ea1f7f02183928b5199e5051bbf7f5b951d79f",
        ),
        ("fonts-tuffy", "20120614-2.1", "", "e77e30607b5653a109f2e4a6527c43df55c7d7a6c23e77f8734a86110e6cbd08"),
        (
            "fonts-goudybookletter",
            "2010.07.03-6",
            "",
            "25f3c8db503e161f70d0e6c26143f84b44d76487af1e4b1100c9bff0aa527346",
        ),
        (
            "fonts-crosextra-caladea",
            "20200211-1",
            "",
            "dd51af7629df5a2f3799f889cdf63d5abdda32e94e5de59398f728d98604a240",
        ),
    )
)


def write(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes the set. Labels are the characters; folders say `digit-7`, `upper-a`, `lower-a`."""
    pictures = PictureFolder(folder, progress)
    packages = fetch_debs(FONTS, archives)
    licences = []
    for package in packages:
        fonts, licence = read_fonts(package.path)
        licences.append(f"{package.name} {package.version}\n\n{licence}")
        for name, font in fonts:
            for character, variation, picture in draw_font(font, name):
                source = f"{package.name} {package.version}: {name}, {describe(character)}, variation {variation}"
                kind = describe(character).split()[0]
                text = f"the {kind} {'' if kind == 'digit' else 'letter '}{character} in the font {name}"
                pictures.add(
                    picture, source, character, text, licence=LICENCE, folder=describe(character).replace("case ", "-")
                )
    pictures.finish("glyphs", ("\n\n" + "-" * 78 + "\n").join(licences), packages)


def read_fonts(package: Path) -> tuple[list[tuple[str, bytes]], str]:
    """Names and contents of the fonts of a package, sorted, and its copyright file."""

    def limit(name: str) -> int:
        is_font = name.startswith("usr/share/fonts/") and name.lower().endswith((".ttf", ".otf"))
        return MAX_FONT if is_font or name.endswith("/copyright") else 0

    with package.open("rb") as file:
        members = {name: data for name, data in deb_members(file, limit) if data is not None}
    fonts = {Path(name).stem: data for name, data in sorted(members.items()) if not name.endswith("/copyright")}
    licence = b"".join(data for name, data in members.items() if name.endswith("/copyright"))
    return sorted(fonts.items()), licence.decode(errors="replace")


def draw_font(font: bytes, name: str) -> Iterator[tuple[str, int, Image.Image | None]]:
    """Every character of a font in its variations, as images of mode L; None where the font has no such character.

    The distortions are drawn from a generator seeded by font, character and variation alone.
    """
    side = SIDE * SCALE
    try:
        face = ImageFont.truetype(io.BytesIO(font), round(0.9 * side), layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        yield CHARACTERS[0], 0, None
        return
    nothing = _draw(face, "\U0010fffe", side)
    for character in CHARACTERS:
        drawn = _draw(face, character, side)
        if drawn.tobytes() == nothing.tobytes():
            yield character, 0, None
            continue
        for variation in range(VARIATIONS):
            seed = hashlib.sha256(f"{name} {character} {variation}".encode()).digest()
            random = np.random.default_rng(list(seed))
            yield character, variation, (_distorted(drawn, random) if variation else drawn).reduce(SCALE)


def describe(character: str) -> str:
    """`digit 7`, `uppercase a`, `lowercase a`: also fit for file systems that do not tell cases apart."""
    if character.isdigit():
        return f"digit {character}"
    return f"{'upper' if character.isupper() else 'lower'}case {character.lower()}"


def _draw(face: ImageFont.FreeTypeFont, character: str, side: int) -> Image.Image:
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text((side / 2, side / 2), character, fill=255, font=face, anchor="mm")
    return image


def _distorted(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Turned by up to 15 degrees, slanted, stretched by up to 15 percent and moved by up to 2 pixels."""
    angle, slant = np.radians(random.uniform(-15, 15)), random.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, slant], [0, 1]]) / random.uniform(0.85, 1.15, 2)
    centre = np.array(image.size) / 2
    offset = centre - matrix @ (centre + random.uniform(-2, 2, 2) * SCALE)
    (a, b), (c, d) = matrix
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        tuple(float(value) for value in (a, b, offset[0], c, d, offset[1])),
        Image.Resampling.BILINEAR,
    )


COLLECTION = Collection("glyphs", "letters and digits of free fonts, grey, 28 x 28", LICENCE, 16_537, 4_382_056, write)
